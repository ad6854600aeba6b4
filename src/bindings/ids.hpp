// ObjectId in Python: an int of 128 bits, high << 64 | low. Every ref holds one, so
// both ways are on the hottest path: the digits of the int are read and written
// directly.
#pragma once

#include <Python.h>
#if PY_VERSION_HEX < 0x030b0000
#include <longintrepr.h>
#endif
#include <nanobind/nanobind.h>

#include "core/ids.hpp"

namespace skate {

// A new int; null, with MemoryError set, if there is no room.
inline PyObject* new_id(ObjectId id) noexcept {
#if PYLONG_BITS_IN_DIGIT == 30 && PY_VERSION_HEX < 0x030e0000
  constexpr u64 kMask = (1ULL << 30) - 1;
  if (id.high == 0) return PyLong_FromUnsignedLongLong(id.low);
  // No leading zeros: Python compares the number of digits first.
  const Py_ssize_t n = id.high >> 56 != 0 ? 5 : id.high >> 26 != 0 ? 4 : 3;
  PyLongObject* made = _PyLong_New(n);
  if (made == nullptr) return nullptr;
#if PY_VERSION_HEX >= 0x030c0000
  digit* digits = made->long_value.ob_digit;
#else
  digit* digits = made->ob_digit;
#endif
  digits[0] = static_cast<digit>(id.low & kMask);
  digits[1] = static_cast<digit>(id.low >> 30 & kMask);
  digits[2] = static_cast<digit>((id.low >> 60 | id.high << 4) & kMask);
  if (n > 3) digits[3] = static_cast<digit>(id.high >> 26 & kMask);
  if (n > 4) digits[4] = static_cast<digit>(id.high >> 56);
  return reinterpret_cast<PyObject*>(made);
#else
  const u64 words[2] = {id.low, id.high};
#if PY_VERSION_HEX >= 0x030d0000
  return PyLong_FromUnsignedNativeBytes(words, sizeof words,
                                        Py_ASNATIVEBYTES_LITTLE_ENDIAN);
#else
  return _PyLong_FromByteArray(reinterpret_cast<const unsigned char*>(words),
                               sizeof words, /*little_endian=*/1, /*is_signed=*/0);
#endif
#endif
}

// False, and no error set, if `object` is not an int of 0 to 128 bits.
inline bool read_id(PyObject* object, ObjectId& id) noexcept {
  if (!PyLong_Check(object)) return false;
#if PYLONG_BITS_IN_DIGIT == 30 && PY_VERSION_HEX < 0x030e0000
  const auto* number = reinterpret_cast<const PyLongObject*>(object);
#if PY_VERSION_HEX >= 0x030c0000
  // The lowest bits are the sign: 0 is positive, 1 zero, 2 negative.
  const auto n = static_cast<Py_ssize_t>(number->long_value.lv_tag >> 3);
  if ((number->long_value.lv_tag & 3) == 2) return false;
  const digit* digits = number->long_value.ob_digit;
#else
  const Py_ssize_t n = Py_SIZE(number);
  if (n < 0) return false;
  const digit* digits = number->ob_digit;
#endif
  const auto at = [&](Py_ssize_t i) { return i < n ? static_cast<u64>(digits[i]) : 0; };
  if (n > 5 || at(4) >= 1ULL << 8) return false;
  id.low = at(0) | at(1) << 30 | at(2) << 60;
  id.high = at(2) >> 4 | at(3) << 26 | at(4) << 56;
  return true;
#else
  u64 words[2] = {};
#if PY_VERSION_HEX >= 0x030d0000
  const Py_ssize_t needed = PyLong_AsNativeBytes(object, words, sizeof words,
                                                 Py_ASNATIVEBYTES_LITTLE_ENDIAN |
                                                     Py_ASNATIVEBYTES_UNSIGNED_BUFFER |
                                                     Py_ASNATIVEBYTES_REJECT_NEGATIVE);
  const bool fits = needed >= 0 && needed <= static_cast<Py_ssize_t>(sizeof words);
#else
  const bool fits =
      _PyLong_AsByteArray(reinterpret_cast<PyLongObject*>(object),
                          reinterpret_cast<unsigned char*>(words), sizeof words,
                          /*little_endian=*/1, /*is_signed=*/0) == 0;
#endif
  if (!fits) {
    PyErr_Clear();
    return false;
  }
  id = {words[1], words[0]};
  return true;
#endif
}

// The same for those that raise: throw PythonError (refuse.hpp).
PyObject* py_id(ObjectId id);
ObjectId id_from(PyObject* object);

}  // namespace skate

namespace nanobind::detail {

template <>
struct type_caster<skate::ObjectId> {
  NB_TYPE_CASTER(skate::ObjectId, const_name("int"))

  bool from_python(handle source, uint8_t, cleanup_list*) noexcept {
    return skate::read_id(source.ptr(), value);
  }
  static handle from_cpp(skate::ObjectId id, rv_policy, cleanup_list*) noexcept {
    return skate::new_id(id);
  }
};

}  // namespace nanobind::detail
