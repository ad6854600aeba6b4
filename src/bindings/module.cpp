// skate._core: the C++ core as a Python module. One bind_<part>.cpp per part.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_constants(nb::module_& m);
void bind_node(nb::module_& m);
void bind_control(nb::module_& m);
void bind_group(nb::module_& m);
void bind_rounds(nb::module_& m);
void bind_tools(nb::module_& m);
void bind_trace(nb::module_& m);

NB_MODULE(_core, m) {
  nb::set_leak_warnings(false);  // the engine lives as long as the process
  m.doc() = "The C++ core of skate's embedded engine. Use the names in skate instead.";
  bind_constants(m);
  bind_node(m);
  bind_control(m);
  bind_group(m);
  bind_rounds(m);
  bind_tools(m);
  bind_trace(m);
}
