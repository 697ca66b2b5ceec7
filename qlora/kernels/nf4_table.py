"""The table that dequantizes a 4-bit weight, one float32 tensor.

With double quantization a block's scale is an 8-bit code, and the numbers to decode it follow the weight's own
(bitsandbytes' QuantState and its state2):

  0 to 15    the value of each 4-bit weight code
  16 to 271  the value of each 8-bit scale code
  272        the offset added to every decoded scale
  from 273   the outer scales, one for OUTER_BLOCK scales
"""

SCALE_VALUES = 16
OFFSET = 272
OUTER_SCALES = 273
OUTER_BLOCK = 256
