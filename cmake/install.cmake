# SPDX-License-Identifier: Apache-2.0
# `cmake --install`: the headers and what find_package(zeropp) needs. Nothing in it names the folder it was built in.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(zeropp_config_dir ${CMAKE_INSTALL_DATADIR}/cmake/zeropp)  # headers are the same on every architecture
set_property(TARGET zeropp_checked PROPERTY EXPORT_NAME checked)
set_property(TARGET zeropp_tcp PROPERTY EXPORT_NAME tcp)
install(TARGETS zeropp zeropp_checked zeropp_tcp EXPORT zeropp FILE_SET HEADERS)
install(EXPORT zeropp FILE targets.cmake NAMESPACE zeropp:: DESTINATION ${zeropp_config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/zeroppConfigVersion.cmake COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)
configure_package_config_file(cmake/zeroppConfig.cmake.in ${PROJECT_BINARY_DIR}/zeroppConfig.cmake
                              INSTALL_DESTINATION ${zeropp_config_dir} NO_SET_AND_CHECK_MACRO)
install(FILES ${PROJECT_BINARY_DIR}/zeroppConfig.cmake ${PROJECT_BINARY_DIR}/zeroppConfigVersion.cmake
              cmake/dependencies.cmake
        DESTINATION ${zeropp_config_dir})
