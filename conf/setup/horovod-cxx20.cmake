# Read after project(): whoever asks for C++11 or C++14 from here on gets C++20.
set(CMAKE_CXX11_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CXX14_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CXX14_EXTENSION_COMPILE_OPTION "-std=gnu++20")
