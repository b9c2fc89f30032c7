# Cross build for 64-bit ARM Linux with Debian's or Ubuntu's g++-aarch64-linux-gnu. Test programs run under qemu-user:
#   cmake -S kernels/cpp -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=kernels/cpp/cmake/aarch64-linux-gnu.cmake
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

# The core that qemu-user plays, e.g. cortex-a53 (no dot product), cortex-a76 or max.
set(BNNEDGE_QEMU_CPU max CACHE STRING "CPU model of the emulator")
find_program(BNNEDGE_QEMU NAMES qemu-aarch64-static qemu-aarch64)
if(BNNEDGE_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${BNNEDGE_QEMU};-L;/usr/aarch64-linux-gnu;-cpu;${BNNEDGE_QEMU_CPU}")
endif()
