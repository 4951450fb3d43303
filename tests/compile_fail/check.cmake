# cmake -DCOMPILER=... -DINCLUDES=... -DSOURCE=... -P check.cmake: see CMakeLists.txt beside it.
set(compile "${COMPILER}" -std=c++20 -fsyntax-only -fdiagnostics-color=never ${INCLUDES})
set(ENV{LC_ALL} C) # plain quotes in the messages that are matched

file(STRINGS "${SOURCE}" lines REGEX "^// expect: ")
list(LENGTH lines count)
if(NOT count EQUAL 1)
  message(FATAL_ERROR "${SOURCE} needs exactly one line '// expect: REGEX', it has ${count}")
endif()
string(REGEX REPLACE "^// expect: " "" expected "${lines}")

execute_process(COMMAND ${compile} -DPOSITIVE "${SOURCE}" RESULT_VARIABLE result ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "the positive control does not compile:\n${output}")
endif()
execute_process(COMMAND ${compile} "${SOURCE}" RESULT_VARIABLE result ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "${SOURCE} compiles, and must not")
endif()
if(NOT output MATCHES "${expected}")
  message(FATAL_ERROR "the compiler does not say '${expected}', it says:\n${output}")
endif()
