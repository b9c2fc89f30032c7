# Advanced SIMD belongs to every AArch64; the dot product came with ARMv8.2 and is asked for at run time.
target_sources(bnnedge_core PRIVATE
  neon/conv_2x16_neon.cc
  neon/conv_2x16_neon_dot.cc)
set_source_files_properties(neon/conv_2x16_neon_dot.cc PROPERTIES COMPILE_OPTIONS "-march=armv8.2-a+dotprod")
target_compile_definitions(bnnedge_core PUBLIC BNNEDGE_NEON BNNEDGE_NEON_DOT)
