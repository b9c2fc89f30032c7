# Advanced SIMD belongs to every AArch64; the dot product came with ARMv8.2 and is asked for at run time.
target_sources(bnnedge_core PRIVATE
  neon/conv_2x128_neon_table.cc
  neon/conv_2x16_neon.cc
  neon/conv_2x16_neon_dot.cc
  neon/pack_neon.cc
  neon/pointwise_6x16_neon.cc
  neon/stem_4x16_neon.cc
  neon/stem_4x16_neon_dot.cc)
target_compile_definitions(bnnedge_core PUBLIC BNNEDGE_NEON BNNEDGE_NEON_DOT)

# How GCC and Clang want it, else how Zig does.
include(CheckCXXCompilerFlag)
set(dot_flag -march=armv8.2-a+dotprod)
check_cxx_compiler_flag(${dot_flag} BNNEDGE_HAS_MARCH)
if(NOT BNNEDGE_HAS_MARCH)
  set(dot_flag -mcpu=generic+v8_2a+dotprod)
endif()
set_source_files_properties(neon/conv_2x16_neon_dot.cc neon/stem_4x16_neon_dot.cc PROPERTIES COMPILE_OPTIONS ${dot_flag})
