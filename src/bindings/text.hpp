// Text between Python and C++. Names are for people: whatever bytes they are, nothing
// fails.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <string_view>

namespace skate {

// The one way by which text for people becomes a str: what is not UTF-8 (cut, torn, or
// half a surrogate pair) shows as a replacement character.
inline nanobind::str to_str(std::string_view text) {
  PyObject* str = PyUnicode_DecodeUTF8(text.data(),
                                       static_cast<Py_ssize_t>(text.size()), "replace");
  if (str == nullptr) throw nanobind::python_error();
  return nanobind::steal<nanobind::str>(str);
}

// A name that Python looks up, such as a method's: back exactly as Text took it.
inline nanobind::str to_same_str(std::string_view text) {
  PyObject* str = PyUnicode_DecodeUTF8(
      text.data(), static_cast<Py_ssize_t>(text.size()), "surrogatepass");
  if (str == nullptr) throw nanobind::python_error();
  return nanobind::steal<nanobind::str>(str);
}

// A parameter that takes any str, as UTF-8. Halves of surrogate pairs, which a name of
// Python's may hold, are bytes of their own. Valid during the call.
class Text {
 public:
  bool take(PyObject* object) {
    if (!PyUnicode_Check(object)) return false;
    Py_ssize_t size = 0;
    if (const char* utf8 = PyUnicode_AsUTF8AndSize(object, &size)) {
      view_ = {utf8, static_cast<std::size_t>(size)};
      return true;
    }
    PyErr_Clear();
    PyObject* bytes = PyUnicode_AsEncodedString(object, "utf-8", "surrogatepass");
    if (bytes == nullptr) {
      PyErr_Clear();
      return false;
    }
    own_.assign(PyBytes_AS_STRING(bytes),
                static_cast<std::size_t>(PyBytes_GET_SIZE(bytes)));
    Py_DECREF(bytes);
    view_ = {};
    return true;
  }
  std::string_view view() const {
    return own_.empty() ? view_ : std::string_view(own_);
  }
  operator std::string_view() const { return view(); }
  std::string str() const { return std::string(view()); }

 private:
  std::string_view view_;  // of the str's own bytes
  std::string own_;
};

}  // namespace skate

template <>
struct nanobind::detail::type_caster<skate::Text> {
  NB_TYPE_CASTER(skate::Text, const_name("str"))

  bool from_python(handle source, uint8_t, cleanup_list*) noexcept {
    return value.take(source.ptr());
  }
  static handle from_cpp(const skate::Text& text, rv_policy, cleanup_list*) noexcept {
    return PyUnicode_DecodeUTF8(text.view().data(),
                                static_cast<Py_ssize_t>(text.view().size()), "replace");
  }
};
