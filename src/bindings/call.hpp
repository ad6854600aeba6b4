// One call that a worker has been given, as Python has it: its arguments, and the ways
// to answer it. A forked child of the task answers nothing: it ends there.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <memory>
#include <unordered_map>

#include "arguments.hpp"
#include "common.hpp"
#include "store_room.hpp"
#include "wait_list.hpp"

namespace skate {

// A task has forked, and its child returned from the task instead of ending: there the
// child ends. The answer is its parent's to give, and so is all further work.
inline void end_forked_child(Node& node, int status = 0) {
  if (!node.in_forked_child()) return;
  for (const char* name : {"stdout", "stderr"}) {
    PyObject* const stream = PySys_GetObject(name);  // borrowed
    if (stream == nullptr) continue;
    PyObject* const flushed = PyObject_CallMethod(stream, "flush", nullptr);
    if (flushed == nullptr) PyErr_Clear();
    Py_XDECREF(flushed);
  }
  ::_exit(status);
}

// What writes out the text that has no line's end yet, if there is such text. Guarded
// by the GIL.
inline PyObject* held_back_text = nullptr;

inline void flush_before_answer(nb::handle flush) {
  Py_XDECREF(std::exchange(held_back_text, flush.inc_ref().ptr()));
}

// What a call has come to is sent after all that it printed, and when there is memory
// for it: whoever waits for answers may be stopped.
inline void wait_to_answer(Node& node) {
  if (held_back_text != nullptr) {
    const nb::object flush = nb::steal(std::exchange(held_back_text, nullptr));
    flush();
  }
  if (!node.store.is_crowded()) return;
  for (;;) {
    {
      nb::gil_scoped_release release;
      if (node.work.wait_to_answer()) return;
    }
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    end_forked_child(node);  // the handler of a signal may have forked
  }
}

class Call {
 public:
  Call(Node& node, Incoming&& task) : node_(node), task_(std::move(task)) {}
  ~Call() { discard(); }
  Call(const Call&) = delete;

  const TaskHeader& header() const { return task_.header; }

  nb::bytes function_code() {
    const Location& at = task_.header.function;
    nb::bytes code = nb::steal<nb::bytes>(
        PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(at.size)));
    if (!code.is_valid()) throw nb::python_error();
    auto* const to = reinterpret_cast<std::byte*>(PyBytes_AS_STRING(code.ptr()));
    int error = node_.views.copy(at, to);
    while (error == ETIMEDOUT)
      try_later(node_, [&] { error = node_.views.copy(at, to); });
    if (error == ENOENT) refuse("caller_gone");
    if (error != 0) refuse("resources_lack", error);
    return code;
  }

  bool is_plain() const {
    return task_.header.num_returns == 1 && (task_.header.flags & kStreaming) == 0;
  }

  bool is_named() const { return Reader(task_.body).pod<u16>() != 0; }

  std::string method() const {
    Reader reader(task_.body);
    const u16 size = reader.pod<u16>();
    return std::string(reader.rest().substr(0, size));
  }

  // Pickled types of errors after which it should be tried again; one byte: of all.
  nb::bytes retry_on() const {
    Reader reader(task_.body);
    skip(reader);
    const u16 size = reader.pod<u16>();
    return nb::bytes(reader.rest().data(), size);
  }

  nb::tuple arguments() {
    return guarded([&] {
      read_dependencies();
      u64 size = task_.body.size();
      for (const Dependency& d : dependencies_) size += d.value.size();
      task_.running = node_.home.trace.started(label(), task_.header.task_id, size);
      Reader reader(std::string_view(task_.body).substr(0, task_.header.args_size));
      skip(reader);  // the name
      skip(reader);  // when to try again
      const u16 n = reader.pod<u16>();
      const u16 n_named = reader.pod<u16>();
      nb::object args = nb::steal(PyTuple_New(n));
      for (u16 i = 0; i < n; ++i) PyTuple_SET_ITEM(args.ptr(), i, argument(reader));
      nb::dict kwargs;
      for (u16 i = 0; i < n_named; ++i) {
        std::string name(reader.pod<u16>(), '\0');
        for (char& c : name) c = reader.pod<char>();
        nb::object value = nb::steal(argument(reader));
        kwargs[to_same_str(name)] = value;
      }
      return nb::make_tuple(args, kwargs);
    });
  }

  // First half of ending: the results as values. The caller then drops its own hold on
  // them, so that objects which only the results hold can be given to the task's owner.
  void encode(nb::list results) {
    end_forked_child(node_);
    guarded([&] {
      discard();
      for (nb::handle result : results) encode_one(result.ptr());
    });
  }

  void send() {
    end_forked_child(node_);
    wait_to_answer(node_);
    std::vector<Value> values = std::exchange(values_, {});  // whatever is thrown
    node_.work.finish(task_, values);
  }

  // What `function` returns. While it runs, skate.cancel may raise KeyboardInterrupt in
  // it.
  nb::object run(nb::handle function, nb::handle args, nb::handle kwargs) {
    if (!node_.interrupts.begin()) {
      PyErr_SetNone(PyExc_KeyboardInterrupt);
      throw nb::python_error();
    }
    PyObject* result = PyObject_Call(function.ptr(), args.ptr(), kwargs.ptr());
    node_.interrupts.end();
    if (result == nullptr) throw nb::python_error();
    return nb::steal(result);
  }

  // A task that returns one value, from its arguments to the sending of its result.
  // While it runs, `variable` says what runs: the task, no actor, `name`.
  void perform(nb::handle function, nb::handle variable, nb::handle name) {
    const Within within(variable, task_.header.task_id, nb::int_(0), name);
    nb::object result;
    {
      const nb::tuple given = arguments();
      result = run(function, given[0], given[1]);
    }
    answer(std::move(result));
  }

  // The same for a call of an actor's method, which is not interrupted. `called` says
  // how far it came: whether the method was called.
  void perform_method(nb::handle object, nb::handle method, nb::handle variable,
                      nb::handle actor, nb::handle name, bool& called) {
    nb::object function = object.attr(method);
    nb::tuple given = arguments();
    const Within within(variable, task_.header.task_id, actor, name);
    called = true;
    nb::object result = nb::steal(PyObject_Call(
        function.ptr(), nb::object(given[0]).ptr(), nb::object(given[1]).ptr()));
    if (!result.is_valid()) throw nb::python_error();
    function.reset();
    given.reset();
    answer(std::move(result));
  }

  // Sends the items of `generator` until it ends, or nobody reads them any more: then
  // it is closed. With `interruptible`, skate.cancel may raise KeyboardInterrupt in it.
  void stream(nb::object generator, bool interruptible) {
    for (;;) {
      nb::object item = advance(generator, interruptible);
      end_forked_child(node_);
      if (!item.is_valid()) return;
      bool open;
      try {
        open = send_item(item);
        item.reset();
        bool cancelled = !interruptible && this->cancelled();
        if (open && !cancelled && !has_room())
          wait_patiently(node_, [&] {
            return node_.streams.wait_room(task_, num_items_, interruptible, open,
                                           cancelled);
          });
        if (cancelled && !interruptible) {
          PyErr_SetNone(PyExc_KeyboardInterrupt);
          throw nb::python_error();
        }
      } catch (nb::python_error& error) {
        close(generator, interruptible);
        PyErr_Clear();  // the first error is the one to tell
        throw;
      }
      if (open) continue;
      if (!close(generator, interruptible)) throw nb::python_error();
      return;
    }
  }

  // Sends one item. False: nobody will read it, nor any later one.
  bool send_item(nb::handle item) {
    end_forked_child(node_);
    wait_to_answer(node_);
    return guarded([&] {
      std::vector<Value> value;
      Encoder encoder(node_);
      encoder.encode(item.ptr());
      value.push_back(encoder.finish());
      return node_.streams.send_item(task_, num_items_++, value);
    });
  }

  // Whether the next item may be made now.
  bool has_room() {
    end_forked_child(node_);
    return task_.header.window == 0 || node_.streams.has_room(task_, num_items_);
  }

  // 0: a call; 1: it was cancelled; 2: its items were read.
  int notice() const { return static_cast<int>(task_.notice); }
  bool cancelled() {
    end_forked_child(node_);
    return node_.work.is_cancelled(task_.header.task_id);
  }
  bool wanted() {
    end_forked_child(node_);
    return node_.work.is_wanted(task_);
  }
  void fail_cancelled() {
    end_forked_child(node_, 1);
    discard();
    wait_to_answer(node_);
    node_.work.finish_cancelled(task_);
  }

  // `refs` are inside of the error; `retryable`: the task should be tried again.
  void fail(nb::bytes error, nb::list refs, bool retryable) {
    end_forked_child(node_, 1);
    discard();  // what was encoded before something else went wrong
    wait_to_answer(node_);
    guarded([&] {
      const std::vector<ObjectId> held = ids_of(refs);
      std::vector<Value> values;  // one, of all returns
      Encoder encoder(node_);
      encoder.encode(error.ptr());
      values.push_back(encoder.finish(true));
      values.back().is_error = true;
      for (const ObjectId id : held) {
        node_.objects.acquire(id);
        values.back().contained.push_back({id, id});
      }
      node_.work.finish(task_, values, retryable);
    });
  }

 private:
  // The next item; nothing at the end. If the task was cancelled while the generator
  // waited at a yield, KeyboardInterrupt is raised there.
  nb::object advance(nb::handle generator, bool interruptible) {
    bool interrupted = false;
    if (interruptible && !node_.interrupts.begin()) {
      interrupted = true;
      node_.interrupts.begin();
    }
    PyObject* item = interrupted ? PyObject_CallMethod(generator.ptr(), "throw", "O",
                                                       PyExc_KeyboardInterrupt)
                                 : PyIter_Next(generator.ptr());
    if (interruptible) node_.interrupts.end();
    if (item != nullptr) return nb::steal(item);
    if (PyErr_Occurred() == nullptr) return nb::object();
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) throw nb::python_error();
    PyErr_Clear();
    return nb::object();
  }

  // False: it raised.
  bool close(nb::handle generator, bool interruptible) {
    if (interruptible) node_.interrupts.begin();
    PyObject* none = PyObject_CallMethod(generator.ptr(), "close", nullptr);
    if (interruptible) node_.interrupts.end();
    Py_XDECREF(none);
    return none != nullptr;
  }

  struct Dependency {
    ObjectId id;
    Value value;
  };

  // Results that are encoded, and will not be sent.
  void discard() {
    if (!values_.empty()) node_.work.discard(task_, values_);
  }

  // What its results are made by: see Node.name_function.
  u32 made_by() {
    const u32 known = node_.inventory.label(task_.header.function_id);
    return known == 0 ? Inventory::kDefaultLabel : known;
  }

  // Encodes the one value, and sends it.
  void answer(nb::object result) {
    end_forked_child(node_);
    guarded([&] { encode_one(result.ptr()); });
    result.reset();  // what only the result holds goes to the task's owner
    send();
  }

  // Sets a context variable to (task, actor, name) for as long as it lives.
  class Within {
   public:
    Within(nb::handle variable, ObjectId task_id, nb::handle actor, nb::handle name)
        : variable_(variable) {
      const nb::object what = nb::make_tuple(task_id, actor, name);
      token_ = nb::steal(PyContextVar_Set(variable.ptr(), what.ptr()));
      if (!token_.is_valid()) throw nb::python_error();
    }
    ~Within() { PyContextVar_Reset(variable_.ptr(), token_.ptr()); }
    Within(const Within&) = delete;
    Within& operator=(const Within&) = delete;

   private:
    nb::handle variable_;
    nb::object token_;
  };

  // Adds a result to the values; they are gone if it cannot be encoded.
  void encode_one(PyObject* result) {
    Unsealed unsealed;
    if (task_.header.num_returns == 1 && task_.owner != node_.home.self &&
        find_unsealed(node_, result, unsealed) && !unsealed.lent) {
      Value& value = values_.emplace_back();
      value.kind = Value::Kind::kBlock;
      value.block = unsealed.location;
      seal(node_, result, unsealed, {task_.header.task_id}, made_by());
      return;
    }
    Encoder encoder(node_);
    try {
      encoder.encode(result);
      values_.push_back(encoder.finish(false, made_by()));
    } catch (const PythonError&) {
      discard();
      throw;
    }
  }

  void read_dependencies() {
    Reader reader(std::string_view(task_.body).substr(task_.header.args_size));
    dependencies_.resize(task_.header.num_deps);
    for (Dependency& d : dependencies_) {
      d.id = reader.pod<ObjectId>();
      reader.value(d.value);
    }
  }

  PyObject* argument(Reader& reader) {
    if (reader.pod<ArgKind>() == kDependency) {
      const Dependency& given = dependencies_.at(reader.pod<u32>());
      // Only a constructor is sent with one: its actor tells why it cannot be made.
      if (given.value.is_error) raise_value(node_, given.value, given.id);
      return decode(node_, given.value, given.id, false);
    }
    const std::string_view bytes = reader.bytes();
    return decode_bytes(node_, reinterpret_cast<const std::byte*>(bytes.data()),
                        bytes.size(), nullptr, false);
  }

  static void skip(Reader& reader) {
    for (u16 n = reader.pod<u16>(); n > 0; --n) reader.pod<char>();
  }

  u32 label() {
    Trace& trace = node_.home.trace;
    Reader reader(task_.body);
    const u16 size = reader.pod<u16>();
    const std::string_view name = reader.rest().substr(0, size);
    if (!trace.title().empty()) return trace.label_of_method(name);
    return label_of_task(node_, task_.header.function_id, name);
  }

  Node& node_;
  Incoming task_;
  std::vector<Dependency> dependencies_;
  std::vector<Value> values_;
  u64 num_items_ = 0;
};

}  // namespace skate
