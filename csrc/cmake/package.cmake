# What the binaries of a Python package do without: symbols that only a debugger needs, and every path of the machine that built them.
set(MOBIZO_HIDDEN_PREFIXES "" CACHE STRING "folders whose names no binary may carry; setup.py names those it builds from")
foreach(_prefix IN LISTS MOBIZO_HIDDEN_PREFIXES)
  add_compile_options(-ffile-prefix-map=${_prefix}=.)
endforeach()
if(MOBIZO_HIDDEN_PREFIXES)
  # Ninja names sources by the way from the build folder, which is not the same for everybody.
  file(RELATIVE_PATH _sources ${CMAKE_BINARY_DIR} ${CMAKE_CURRENT_LIST_DIR}/../..)
  add_compile_options(-ffile-prefix-map=${_sources}=.)
  add_link_options(LINKER:--strip-all)
endif()
