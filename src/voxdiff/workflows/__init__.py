"""What a person does with several rooms at once."""
