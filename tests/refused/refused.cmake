# SPDX-License-Identifier: Apache-2.0
# cmake -D COMPILER=... -D FLAGS=@file -D CASE=case.cpp -D SCRATCH=folder -P refused.cmake: see CMakeLists.txt here.
set(most_lines 25)

function(fail sentence)
  message(NOTICE "${sentence}")  # as it is; an error message would be wrapped
  message(FATAL_ERROR "${CASE}")
endfunction()

file(READ ${CASE} code)
if(NOT code MATCHES "// refused: ([^\n]+)")
  fail("${CASE} has no line '// refused: <sentence>'")
endif()
set(sentence "${CMAKE_MATCH_1}")

# Compilers quote the code in their messages. The sentence must not come from there, so they see the case without it.
cmake_path(GET CASE STEM name)
cmake_path(GET COMPILER STEM compiler)
string(REGEX REPLACE "// refused: [^\n]+" "" code "${code}")
set(copy ${SCRATCH}/${name}.${compiler}.cpp)
file(WRITE ${copy} "${code}")

function(compile out_status out_text)
  execute_process(COMMAND ${COMPILER} -std=c++20 -fsyntax-only ${FLAGS} ${ARGN} ${copy} RESULT_VARIABLE status
                  OUTPUT_VARIABLE text ERROR_VARIABLE text)
  set(${out_status} "${status}" PARENT_SCOPE)
  set(${out_text} "${text}" PARENT_SCOPE)
endfunction()

compile(status text)
if(NOT status EQUAL 0)
  fail("the right arm of ${name} does not compile:\n${text}")
endif()

compile(status text -DREFUSED)
string(REGEX MATCHALL "\n" lines "${text}")
list(LENGTH lines lines)
if(status EQUAL 0)
  fail("the wrong arm of ${name} compiles; it should be refused: ${sentence}")
endif()
string(FIND "${text}" "${sentence}" at)
if(at LESS 0)
  fail("the wrong arm of ${name} is refused without the sentence: ${sentence}\n${text}")
endif()
if(lines GREATER most_lines)
  fail("the wrong arm of ${name} is refused in ${lines} lines, at most ${most_lines} are readable:\n${text}")
endif()
message(STATUS "${name} is refused in ${lines} lines: ${sentence}")
