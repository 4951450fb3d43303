# cmake -DPREFIX=.. -DSOURCE=.. -DBUILD=.. -DCOMPILER=.. -P messages.cmake: find_package(qlora) must say why a component
# cannot be used. PREFIX holds the installed library, BUILD is a folder for projects that are configured here.

# expect(REGEX ARGUMENT...): configuring with the arguments fails, and the message matches.
function(expect regex)
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -U "CMAKE_DISABLE_FIND_PACKAGE_*" -U qlora_DIR -U PKG_CONFIG_EXECUTABLE
            -S "${SOURCE}" -B "${BUILD}"
            "-DCMAKE_PREFIX_PATH=${PREFIX}" "-DCMAKE_CXX_COMPILER=${COMPILER}" ${ARGN}
    RESULT_VARIABLE status OUTPUT_QUIET ERROR_VARIABLE message)
  string(REGEX REPLACE "[ \n]+" " " message "${message}") # CMake wraps lines
  if(status EQUAL 0)
    message(SEND_ERROR "${ARGN}: configured; expected the message: ${regex}")
  elseif(NOT message MATCHES "${regex}")
    message(SEND_ERROR "${ARGN}: expected: ${regex}\nfound: ${message}")
  endif()
endfunction()

expect("cdua: no component has this name; there are: cpu io text net s3 web serve mpi cuda" "-DASK=cpu,cdua")
expect("cpu: Eigen 3.4 was not found [(]Debian: libeigen3-dev[)]" -DASK=cpu -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON)
expect("io: nlohmann/json 3.11 was not found.* text: it needs the component io" -DASK=text
       -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON)
expect("io: OpenSSL 3 was not found [(]Debian: libssl-dev[)]" -DASK=io -DCMAKE_DISABLE_FIND_PACKAGE_OpenSSL=ON)
file(GLOB_RECURSE text_targets "${PREFIX}/*/qlora_text-targets.cmake")
if(text_targets)
  # Not CMAKE_DISABLE_FIND_PACKAGE_PkgConfig: CMake's FindOpenSSL calls what it would define.
  expect("text: sentencepiece is found by pkg-config, which is missing" -DASK=text
         -DPKG_CONFIG_EXECUTABLE=/no-such-program)
endif()
file(GLOB_RECURSE serve_targets "${PREFIX}/*/qlora_serve-targets.cmake")
if(serve_targets)
  expect("serve: Boost 1.81 was not found [(]Debian: libboost1.81-dev[)]" -DASK=serve
         -DCMAKE_DISABLE_FIND_PACKAGE_Boost=ON)
endif()
file(GLOB_RECURSE mpi_targets "${PREFIX}/*/qlora_mpi-targets.cmake")
if(mpi_targets)
  expect("mpi: MPI 3 was not found [(]Debian: libopenmpi-dev[)]" -DASK=mpi -DCMAKE_DISABLE_FIND_PACKAGE_MPI=ON)
endif()

# The same package without a component: its export file is what says that it was built.
set(copy "${BUILD}-prefix")
file(REMOVE_RECURSE "${copy}")
file(COPY "${PREFIX}/" DESTINATION "${copy}")
file(GLOB_RECURSE exports "${copy}/*/qlora_cuda-targets*.cmake" "${copy}/*/qlora_web-targets*.cmake")
if(exports)
  file(REMOVE ${exports})
endif()
set(PREFIX "${copy}")
expect("web: this installation of qlora was built without it;.* cuda: .*without it;.*-DQLORA_CUDA=ON"
       "-DASK=web,cuda")
