# Horovod asks for C++14, torch's headers need C++20. A toolchain file is read too early to change that:
# it names the file that is read after project(). Validated with Horovod 0.28.1, torch 2.15.0, g++ 12.2, cmake 3.31.
set(CMAKE_PROJECT_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/horovod-cxx20.cmake")
