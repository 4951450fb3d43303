# Install rules. One export file per component, so that find_package(qlora COMPONENTS cpu) looks for Eigen only.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

option(QLORA_INSTALL "Generate the install rules" ${PROJECT_IS_TOP_LEVEL})
if(NOT QLORA_INSTALL)
  return()
endif()

if(QLORA_HAS_CUDA) # the compiled kernels make it a package of one architecture
  set(qlora_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/qlora")
  set(architecture)
else()
  set(qlora_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/qlora")
  set(architecture ARCH_INDEPENDENT)
endif()
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/" "${PROJECT_SOURCE_DIR}/configs/" "${PROJECT_SOURCE_DIR}/cuda/"
        DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT library FILES_MATCHING PATTERN "*.hpp" PATTERN "*.cuh")
foreach(target IN LISTS qlora_components)
  install(TARGETS ${target} EXPORT ${target}-targets ARCHIVE COMPONENT library)
  install(EXPORT ${target}-targets NAMESPACE qlora:: DESTINATION "${qlora_package_dir}" COMPONENT library)
endforeach()

configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/qloraConfig.cmake.in"
                              "${PROJECT_BINARY_DIR}/qloraConfig.cmake"
                              INSTALL_DESTINATION "${qlora_package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/qloraConfigVersion.cmake" COMPATIBILITY SameMinorVersion
                                 ${architecture})
install(FILES "${PROJECT_BINARY_DIR}/qloraConfig.cmake" "${PROJECT_BINARY_DIR}/qloraConfigVersion.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/QloraModel.cmake" "${PROJECT_SOURCE_DIR}/cmake/QloraRegister.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/FindXXHASH.cmake"
        DESTINATION "${qlora_package_dir}" COMPONENT library)
# for builds without CMake
configure_file("${PROJECT_SOURCE_DIR}/cmake/qlora.pc.in" "${PROJECT_BINARY_DIR}/qlora.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/qlora.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig" COMPONENT library)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT library)
