"""Quantizes a checkpoint's weights to int8 and int4: calibration texts, SmoothQuant, GPTQ, codes and scales."""
