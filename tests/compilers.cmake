# SPDX-License-Identifier: Apache-2.0
# For tests that call a compiler themselves: the compilers there are, and the flags of a target as a file.
#   compilers         names: the one that builds, and g++ or clang++, whichever it is not
#   compiler_<name>   path
#   other_compiler    name of the second one, empty if it is not installed
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  set(compilers clang++)
  set(other_compiler g++)
else()
  set(compilers g++)
  set(other_compiler clang++)
endif()
set(compiler_${compilers} ${CMAKE_CXX_COMPILER})
find_program(ZEROPP_OTHER_COMPILER ${other_compiler} DOC "A second compiler, for tests of diagnostics and warnings")
mark_as_advanced(ZEROPP_OTHER_COMPILER)
if(ZEROPP_OTHER_COMPILER)
  list(APPEND compilers ${other_compiler})
  set(compiler_${other_compiler} ${ZEROPP_OTHER_COMPILER})
else()
  message(STATUS "${other_compiler} is not installed: its tests of warnings and of refused compositions are left out")
  set(other_compiler "")
endif()

# A header compiled beforehand, for tests that call a compiler: most of their time would go into the same includes.
#   zeropp_precompiled(compiler name header flags out)   out: the options that use it
function(zeropp_precompiled compiler name header flags out)
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/${compiler})
  file(MAKE_DIRECTORY ${folder})
  file(CONFIGURE OUTPUT ${folder}/${name}.hpp CONTENT "${header}" @ONLY)
  if(compiler STREQUAL "clang++")
    set(result ${folder}/${name}.pch)
    set(${out} "-include-pch ${result}" PARENT_SCOPE)
  else()
    set(result ${folder}/${name}.hpp.gch)
    set(${out} "-Winvalid-pch -include ${folder}/${name}.hpp" PARENT_SCOPE)
  endif()
  set(headers ${zeropp_headers})
  list(TRANSFORM headers PREPEND ${PROJECT_SOURCE_DIR}/)
  add_custom_command(OUTPUT ${result}
                     COMMAND ${compiler_${compiler}} -std=c++20 -x c++-header ${flags} ${ARGN} ${folder}/${name}.hpp -o ${result}
                     DEPENDS ${headers} ${folder}/${name}.hpp VERBATIM COMMENT "Precompiling ${name}.hpp with ${compiler}")
  add_custom_target(precompiled_${name}_${compiler} ALL DEPENDS ${result})
endfunction()

# The includes, definitions and options of a target in a file that compilers read as @file. Our own headers with -I, or
# they would be spared the warnings; /usr/include not at all, or #include_next breaks.
function(zeropp_flags_file target out)
  set(includes "$<TARGET_PROPERTY:${target},INCLUDE_DIRECTORIES>")
  set(includes "$<REMOVE_DUPLICATES:$<FILTER:${includes},EXCLUDE,^(${PROJECT_SOURCE_DIR}/include|/usr/include)/?$>>")
  set(definitions "$<REMOVE_DUPLICATES:$<TARGET_PROPERTY:${target},COMPILE_DEFINITIONS>>")
  set(options "$<TARGET_PROPERTY:${target},COMPILE_OPTIONS>")
  set(file ${CMAKE_CURRENT_BINARY_DIR}/${target}.flags)
  file(GENERATE OUTPUT ${file} CONTENT "-I${PROJECT_SOURCE_DIR}/include
$<$<BOOL:${includes}>:-isystem $<JOIN:${includes},\n-isystem >>
$<$<BOOL:${definitions}>:-D$<JOIN:${definitions},\n-D>>
$<JOIN:${options},\n>
")
  set(${out} @${file} PARENT_SCOPE)
endfunction()
