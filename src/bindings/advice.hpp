// Advice about calls that cost more than they need to.
#pragma once

#include <Python.h>
#include <nanobind/nanobind.h>

#include <vector>

#include "core/ids.hpp"

namespace skate {

namespace nb = nanobind;

// Notices mistakes that cost speed. The callbacks find the place in the user's code,
// and speak once for each; null: no advice is wanted.
struct Advice {
  PyObject* get_in_a_loop = nullptr;           // (times)
  PyObject* same_large_argument = nullptr;     // (type, bytes)
  PyObject* blocked_in_a_coroutine = nullptr;  // (), in the processes of async actors
  ObjectId last_task{};                        // submitted and not waited for yet
  u32 in_turn = 0;                             // tasks that were waited for one by one
  PyObject* last_large = nullptr;              // a weak reference to an argument
  u32 repeated = 0;

  static constexpr u32 kManyInTurn = 100;
  static constexpr u32 kManyCopies = 4;
  static constexpr std::size_t kLarge = 1 << 20;

  void submitted(ObjectId task) {
    if (last_task) in_turn = 0;
    last_task = task;
  }
  void got(const std::vector<ObjectId>& ids, bool waited) {
    if (waited && blocked_in_a_coroutine != nullptr)
      call(blocked_in_a_coroutine, PyTuple_New(0));
    if (ids.size() != 1 || ids[0] != last_task) return;
    last_task = {};
    if (++in_turn < kManyInTurn) return;
    in_turn = 0;
    if (get_in_a_loop != nullptr)
      call(get_in_a_loop, Py_BuildValue("(I)", kManyInTurn));
  }
  void large_argument(PyObject* object, std::size_t size) {
    if (same_large_argument == nullptr || size < kLarge) return;
    if (last_large != nullptr) {
      const nb::object last = nb::steal(PyObject_CallNoArgs(last_large));
      if (!last.is_valid()) throw nb::python_error();
      if (last.ptr() == object) {
        if (++repeated == kManyCopies)
          call(same_large_argument,
               Py_BuildValue("(sK)", Py_TYPE(object)->tp_name,
                             static_cast<unsigned long long>(size)));
        return;
      }
    }
    Py_CLEAR(last_large);
    last_large = PyWeakref_NewRef(object, nullptr);
    if (last_large == nullptr) PyErr_Clear();  // of a type that has none
    repeated = 1;
  }
  void clear() {
    Py_CLEAR(get_in_a_loop);
    Py_CLEAR(same_large_argument);
    Py_CLEAR(blocked_in_a_coroutine);
    Py_CLEAR(last_large);
  }

 private:
  static void call(PyObject* advise, PyObject* arguments) {
    const nb::object held =
        nb::borrow(advise);  // it may end the session, and clear this
    const nb::object args = nb::steal(arguments);
    if (!args.is_valid()) throw nb::python_error();
    nb::object done = nb::steal(PyObject_CallObject(held.ptr(), args.ptr()));
    if (!done.is_valid()) throw nb::python_error();  // the user made warnings errors
  }
};
inline Advice g_advice;

}  // namespace skate
