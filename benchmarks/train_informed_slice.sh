#!/usr/bin/env bash
# The recipe of model_cards/informed-slice-brain-64: simulated FLAIR brains with tumours at 64³, in stages. COHORT=ct is
# the second configuration: abdominal CT with the organs as mask.
#
#   bash benchmarks/train_informed_slice.sh [autoencoder] [slice] [generator] [volume] [baseline]
#
# All unless named, in this order; each resumes where it was. baseline is Make-A-Volume, both of its stages.
# Settings (environment): COHORT=flair, RUN=runs/informed-slice-brain-64, CACHE=runs/cohort, SUBJECTS=300,
# AUTOENCODER_STEPS=1800, SLICE_STEPS=3000, GENERATOR_STEPS=2200, VOLUME_STEPS=9000, WORKERS=0, DEVICE=cuda or cpu,
# SMALL=1 for a dry run. A step takes 0.65, 0.3, 0.3 and 0.4 CPU seconds: three hours of one core in all.
set -euo pipefail
cd "$(dirname "$0")/.."

COHORT=${COHORT:-flair}
case $COHORT in
  flair) RUN=${RUN:-runs/informed-slice-brain-64} ;;
  ct) RUN=${RUN:-runs/informed-slice-ct-64} ;;
  *) echo "COHORT is '$COHORT'; give flair or ct." >&2; exit 2 ;;
esac
PYTHON=${PYTHON:-python3}
if [[ -n ${SMALL:-} ]]; then
  SUBJECTS=20 EVERY=2
  AUTOENCODER_STEPS=2 SLICE_STEPS=2 GENERATOR_STEPS=2 VOLUME_STEPS=2
fi
[[ ${DEVICE:-cpu} == cpu ]] && export ACCELERATE_USE_CPU=true
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1

COMMON=(
  --cohort "$COHORT" --num_subjects "${SUBJECTS:-300}" --resolution 64 --cache_dir "${CACHE:-runs/cohort}"
  --lr_scheduler cosine --lr_warmup_steps 50 --dataloader_num_workers "${WORKERS:-0}" --seed 0
  --checkpointing_steps "${EVERY:-200}" --checkpoints_total_limit 1 --resume_from_checkpoint latest --logging_steps 50
)
LATENT=(--vae "$RUN/autoencoder" --latents_dir "$RUN/latents")
[[ -n ${SMALL:-} ]] && LATENT+=(--ignore_autoencoder_report)
# GEM-3D predicts the noise; its error is multiplied in the image where the noise is strong, that of the velocity is not.
# Its schedule keeps 7 % of the signal at the last step, which misleads sampling from pure noise (Lin 2023).
DIFFUSION=(--scheduler cosine-dpm++ --prediction_type v_prediction --norm_num_groups 8 --layers_per_block 1)

run() { "$PYTHON" training_scripts/train_informed_slice.py "${COMMON[@]}" "$@"; }

# 4x, 4 channels, 0.68 M parameters; the other stages are no faster in bfloat16.
autoencoder() {
  run --stage autoencoder --output_dir "$RUN/autoencoder" --max_train_steps "${AUTOENCODER_STEPS:-1800}" \
    --block_out_channels 16,32,64 --layers_per_block 1 --norm_num_groups 8 --latent_channels 4 \
    --train_batch_size 4 --slices_per_volume 6 --learning_rate 1e-3 --use_ema true --ema_decay 0.99 \
    --mixed_precision bf16
}

# 1.69 M parameters, into an output folder, with or without informed slices.
slices() {
  run --stage slice "${LATENT[@]}" "${DIFFUSION[@]}" --output_dir "$1" --informed_slice "$2" \
    --max_train_steps "${SLICE_STEPS:-3000}" --block_out_channels 48,64,80 --attention_levels 1,2 \
    --attention_head_dim 16 --train_batch_size 2 --learning_rate 8e-4 --ema_decay 0.998
}

slice() { slices "$RUN/slice" own; }

# 0.94 M parameters.
generator() {
  run --stage generator "${LATENT[@]}" "${DIFFUSION[@]}" --output_dir "$RUN/generator" \
    --max_train_steps "${GENERATOR_STEPS:-2200}" --block_out_channels 24,48,48 --attention_levels 1,2 \
    --attention_head_dim 8 --cross_attention_dim 32 --train_batch_size 4 --slices_per_volume 8 --learning_rate 8e-4 \
    --ema_decay 0.998
}

# 0.52 M parameters between the slices, and those of the 2D network, which GEM-3D leaves as they are. The whole pipeline holds 3.85 M, 7.7 MB in 16 bits.
tuned() {
  run --stage volume "${LATENT[@]}" --output_dir "$1" --pretrained_model_name_or_path "$2" \
    --max_train_steps "${VOLUME_STEPS:-9000}" --train_batch_size 2 --learning_rate 8e-4 --use_ema true \
    --ema_decay 0.998 --train_spatial true "${@:3}"
}

volume() { tuned "$RUN/volume" "$RUN/slice" --slice_model "$RUN/generator" --known_slice_indicator; }

baseline() {
  slices "$RUN/baseline-slice" none
  tuned "$RUN/baseline" "$RUN/baseline-slice" --informed_slice none
}

(($#)) || set -- autoencoder slice generator volume baseline
for stage in "$@"; do
  case $stage in
    autoencoder | slice | generator | volume | baseline) "$stage" ;;
    *) echo "The stage is '$stage'; give autoencoder, slice, generator, volume or baseline." >&2; exit 2 ;;
  esac
done
