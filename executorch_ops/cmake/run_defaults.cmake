# Writes a header with a constant for each entry of mobizo_kernels/run_defaults.json: numbers, strings and booleans.
set(_file ${CMAKE_CURRENT_SOURCE_DIR}/../mobizo_kernels/run_defaults.json)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${_file})
file(READ ${_file} _json)
string(JSON _entries LENGTH "${_json}")
math(EXPR _last "${_entries} - 1")
set(_constants "")
foreach(_i RANGE ${_last})
  string(JSON _name MEMBER "${_json}" ${_i})
  string(JSON _type TYPE "${_json}" ${_name})
  string(JSON _value GET "${_json}" ${_name})
  if(_type STREQUAL "STRING")
    set(_value "\"${_value}\"")
  elseif(_type STREQUAL "BOOLEAN")
    if(_value)
      set(_value true)
    else()
      set(_value false)
    endif()
  endif()
  string(APPEND _constants "constexpr auto ${_name} = ${_value};\n")
endforeach()
set(MOBIZO_GENERATED ${CMAKE_CURRENT_BINARY_DIR}/generated)
file(CONFIGURE OUTPUT ${MOBIZO_GENERATED}/loop/run_defaults.h @ONLY CONTENT
"// What a run does unless it is told otherwise. Made of mobizo_kernels/run_defaults.json.
#pragma once

namespace mobizo::trainer::run_defaults {

@_constants@
}  // namespace mobizo::trainer::run_defaults
")
