# Many files compiled as one translation unit. Most of the time to compile a test or a verb goes into the headers that
# it includes, and into the templates that they instantiate; files of one translation unit share both.
option(QLORA_TOGETHER "Compile tests, and the program, as few translation units: all in less time, one in more" OFF)
# g++ collects its garbage while it compiles, a seventh of the time for a file of many templates; below 2 GB it need
# not.
if(QLORA_TOGETHER AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:--param=ggc-min-expand=1000;--param=ggc-min-heapsize=2000000>")
endif()

# qlora_together(PATH FILE...): writes a source that includes these files. First come their own includes; all headers
# are guarded, so that in a file, inside the namespace around it, none is read again, and no name of one file meets
# another's. Such a file says nothing outside its namespaces: no namespace of a library, no main(), no operator new.
function(qlora_together path)
  set(text)
  set(bodies)
  foreach(file IN LISTS ARGN)
    file(READ "${file}" source)
    # The lines before the first declaration; what a raw string holds further below is no include.
    string(REGEX REPLACE "\n(using|namespace|constexpr|struct|TEST_CASE)[ (].*" "\n" head "${source}")
    string(REPLACE ";" " " head "${head}")
    string(REGEX MATCHALL "(^|\n)#[ ]*(include|if|ifdef|ifndef|else|elif|endif)[^\n]*" lines "${head}")
    cmake_path(GET file PARENT_PATH folder)
    cmake_path(GET file STEM name)
    foreach(line IN LISTS lines)
      string(STRIP "${line}" line)
      if(line MATCHES "^#include \"(.*)\"")
        if(EXISTS "${folder}/${CMAKE_MATCH_1}") # the group's source lies elsewhere
          set(line "#include \"${folder}/${CMAKE_MATCH_1}\"")
        endif()
      endif()
      string(APPEND text "${line}\n")
    endforeach()
    string(APPEND bodies "namespace file_${name} {\n#include \"${file}\"\n}\n")
  endforeach()
  file(CONFIGURE OUTPUT "${path}" CONTENT "${text}\n${bodies}" @ONLY)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${ARGN}) # a new include goes to the top
endfunction()

# qlora_program_together(LIST FOLDER): replaces most of the program's files in LIST by two in FOLDER that include them:
# those with steps that a build may lack (QLORA_LEFT_OUT in QloraNeeds.cmake; tests/parts links the program without
# them), and the verbs. The other three stand alone: steps.cpp and parts.cpp have definitions of their own, and run.cpp,
# a verb, may be left out.
function(qlora_program_together list folder)
  set(left)
  set(optional)
  set(verbs)
  foreach(file IN LISTS ${list})
    if(file MATCHES "/(steps|parts|run)[.]cpp$")
      list(APPEND left "${file}")
    elseif(file MATCHES "/(fetch|hub|s3|serve)[.]cpp$")
      string(APPEND optional "#include \"${file}\"\n")
    else()
      string(APPEND verbs "#include \"${file}\"\n")
    endif()
  endforeach()
  foreach(part IN ITEMS optional verbs)
    file(CONFIGURE OUTPUT "${folder}/program_${part}.cpp" CONTENT "${${part}}" @ONLY)
    list(APPEND left "${folder}/program_${part}.cpp")
  endforeach()
  set(${list} "${left}" PARENT_SCOPE)
endfunction()
