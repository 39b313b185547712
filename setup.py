"""Metadata, dependencies and the `voxdiff` command."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "train": ["tensorboard"],
    "metrics": ["monai", "scipy", "scikit-learn", "matplotlib", "torchmetrics"],
    "dicom": ["pydicom", "highdicom"],
    "physics": ["deepinv"],
    "demo": ["gradio", "matplotlib"],
    "test": [
        *("pytest", "pytest-xdist", "tensorboard", "pydicom"),
        *("monai", "scipy", "scikit-learn", "scikit-image", "matplotlib", "torchmetrics"),
    ],
    "bench": ["ptwt", "scipy", "monai", "scikit-learn", "matplotlib", "torchmetrics"],
    "dev": ["ruff", "mypy"],
    "conformance": ["pytest", "requests", "requests_mock", "pillow", "parameterized"],
}

setup(
    name="voxdiff",
    version="0.1.0",
    description="Diffusion pipelines for 3D medical image synthesis, in the style of Hugging Face diffusers",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "src/voxdiff/data/anatomies/NOTICE.md"],
    python_requires=">=3.11",
    # The demo model travels inside the package, straight from its card: `voxdiff generate` works offline.
    package_dir={"": "src", "voxdiff.model_cards": "model_cards"},
    packages=[*find_packages("src"), "voxdiff.model_cards"],
    package_data={
        "voxdiff": ["py.typed", "data/anatomies/*"],
        "voxdiff.model_cards": [
            *("wdm-brain-64/*", "wdm-brain-64/unet/*", "wdm-brain-64/scheduler/*"),
            *("cohort-2d/*", "cohort-3d/*"),
        ],
    },
    install_requires=[
        "torch>=2.11,!=2.9.*",
        "diffusers>=0.42",
        "accelerate",
        "transformers",
        "safetensors",
        "huggingface-hub",
        "datasets",
        "nibabel",
        "numpy",
        "typer",
        "rich",
        "pillow",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["voxdiff = voxdiff.cli.main:app"]},
)
