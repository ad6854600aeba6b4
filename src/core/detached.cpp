#include "detached.hpp"

#include <cerrno>
#include <chrono>
#include <new>
#include <thread>

#include "node.hpp"

namespace skate {
namespace {

constexpr std::chrono::milliseconds kLookAgain{1};

}  // namespace

Detached::Detached(Node& node) : node_(node), home_(node.home) {}

bool Detached::ask(Message kind, u64 token, std::string_view payload,
                   ObjectId& answer) {
  const Waits::Waiting waiting(node_.waits);
  Lock lock(home_.mu);
  std::string message(view_of(token));
  message += payload;
  node_.mail.send(home_.driver(), kind, message, Ring::kUrgent);
  // From here on the driver does it, whatever lacks here until its answer can be read.
  const auto has_come = [&] { return from_driver_.contains(token); };
  for (WaitResult result = WaitResult::kInterrupted; result != WaitResult::kReady;) {
    try {
      result = node_.waits.wait(lock, -1, has_come);
    } catch (const std::bad_alloc&) {
      if (!lock.owns_lock()) lock.lock();
      if (has_come()) break;
      lock.unlock();
      std::this_thread::sleep_for(kLookAgain);
      lock.lock();
    }
    if (result == WaitResult::kEngineDied) return false;
  }
  answer = from_driver_[token];
  from_driver_.erase(token);
  return true;
}

ObjectId Detached::reserve() {
  ObjectId id;
  u64 token;
  {
    std::lock_guard lock(home_.mu);
    token = ++last_token_;
  }
  if (!ask(Message::kReserveActor, token, {}, id)) return {};
  node_.objects.acquire(id);
  return id;
}

void Detached::drop(ObjectId actor) {
  std::lock_guard lock(home_.mu);
  if (actor.owner() != home_.self) {
    node_.mail.send(home_.driver(), Message::kDropActor, view_of(actor));
    return;
  }
  node_.actors.give_up(actor, {});
  node_.tasks.run_ready();
  node_.waits.announce();
}

bool Detached::hand_over(Task* task, ProcId address) {
  std::size_t held = 0;
  const auto give_back = [&] {
    std::lock_guard lock(home_.mu);
    while (held != 0) node_.objects.drop_quietly(task->pins[--held]);
    node_.tasks.give_back(task);
  };
  bool adopted;
  try {
    std::string payload;
    u64 token;
    {
      std::lock_guard lock(home_.mu);
      token = ++last_token_;
      write_task(*task, address, payload);
      for (; held < task->pins.size(); ++held) {
        node_.objects.hold(task->pins[held]);
        if (Object* object = node_.objects.find(task->pins[held]))
          object->shared = true;
      }
    }
    ObjectId none;
    adopted = ask(Message::kAdoptActor, token, payload, none);
  } catch (const std::bad_alloc&) {  // nothing was said
    give_back();
    throw;
  }
  give_back();
  return adopted;
}

void Detached::write_task(const Task& task, ProcId address, std::string& payload) {
  Writer writer(payload);
  writer.pod(task.actor);
  writer.pod(address);
  writer.pod(task.header);
  writer.bytes(task.args);
  writer.pod(static_cast<u32>(task.deps.size()));
  for (ObjectId id : task.deps) writer.pod(id);
  // The code goes along: this process's memory may not last.
  const ObjectId code = task.header.function_id;
  writer.pod(static_cast<u32>(task.pins.size()));
  for (ObjectId id : task.pins) writer.pod(id == code ? ObjectId{} : id);
  const Value& value = node_.objects.find(code)->value;
  writer.bytes(
      {reinterpret_cast<const char*>(node_.store.arena().at(value.block.offset)),
       value.block.size});
  writer.pod(static_cast<u32>(value.contained.size()));
  for (const Contained& ref : value.contained) writer.pod(ref);
}

void Detached::maker_died(ProcId dead) {
  std::vector<ObjectId> lost;
  for (const auto& [actor, maker] : reserved_)
    if (maker == dead) lost.push_back(actor);
  Failure failure;
  failure.cause = DeathCause::kOwnerEnded;
  for (const ObjectId actor : lost) node_.actors.give_up(actor, failure);
}

void Detached::actor_ended(ObjectId actor) {
  reserved_.erase(actor);
  if (held_.erase(actor) != 0) node_.objects.drop(actor);
}

void Detached::handle(Message kind, Reader& reader, ProcId from) {
  if (kind == Message::kDropActor) {
    node_.actors.give_up(reader.pod<ObjectId>(), {});
    return;
  }
  const u64 token = reader.pod<u64>();
  std::string answer(view_of(token));
  switch (kind) {
    case Message::kReserveActor: {
      Object& object = node_.objects.create(Object::Kind::kActor);
      object.local = 1;
      object.shared = true;
      held_.insert(object.id);
      reserved_[object.id] = from;
      answer += view_of(object.id);
      node_.mail.send(from, Message::kActorReserved, answer, Ring::kUrgent);
      break;
    }
    case Message::kAdoptActor: {
      adopt(reader);
      const ObjectId none;
      answer += view_of(none);
      // After the kBorrow messages for what the constructor needs.
      node_.mail.send(from, Message::kActorAdopted, answer, Ring::kUrgent);
      break;
    }
    default:
      from_driver_[token] = reader.pod<ObjectId>();
      node_.waits.changed();
      break;
  }
}

void Detached::adopt(Reader& reader) {
  Task* task = node_.tasks.take();
  task->route = Task::Route::kActor;
  task->actor = reader.pod<ObjectId>();
  const ProcId address = reader.pod<ProcId>();
  task->header = reader.pod<TaskHeader>();
  task->args.assign(reader.bytes());
  task->deps.resize(reader.pod<u32>());
  for (ObjectId& id : task->deps) id = reader.pod<ObjectId>();
  for (u32 n = reader.pod<u32>(); n > 0; --n)
    if (const ObjectId id = reader.pod<ObjectId>()) task->pins.push_back(id);
  const std::string_view bytes = reader.bytes();
  // Past the store's limit too, as for other code.
  const auto block = node_.store.allocate_past_limit(bytes.size());
  if (!block) {
    const ObjectId actor = task->actor;
    node_.tasks.give_back(task);
    return node_.actors.give_up(actor, lacks(ENOSPC));
  }
  std::memcpy(node_.store.arena().at(block->offset), bytes.data(), bytes.size());
  Value code;
  code.kind = Value::Kind::kBlock;
  code.block = *block;
  code.contained.resize(reader.pod<u32>());
  for (Contained& ref : code.contained) {
    ref = reader.pod<Contained>();
    node_.objects.hold(ref.id);
  }
  task->header.function = code.block;
  const ObjectId function =
      node_.objects.keep(std::move(code), Object::Kind::kFunction);
  task->header.function_id = function;
  task->pins.push_back(function);
  task->label = home_.trace.label_of_call_without_gil(task->actor, "__init__");
  const ObjectId id = task->actor;
  reserved_.erase(id);
  Object* actor = node_.objects.find(id);
  if (actor != nullptr) node_.actors.settle_in(*actor, address);
  const bool failed = actor != nullptr && actor->value.kind == Value::Kind::kFailure;
  std::vector<ObjectId> none;
  node_.tasks.start(task, none, /*has_gil=*/false);
  node_.objects.drop(function);  // the call and the recipe hold it now
  if (failed) actor_ended(id);
}

}  // namespace skate
