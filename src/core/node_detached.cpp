// Detached actors that a worker creates: the driver, which outlives everybody, owns their
// handles and keeps what they are constructed from.
#include "node_common.hpp"

namespace skate {

bool Node::ask_driver(Message kind, u32 token, std::string_view payload,
                      ObjectId& answer) {
  Lock lock(mu_);
  std::string message(view_of(token));
  message += payload;
  send(peer(kDriver).id, kind, message, Ring::kUrgent);
  for (;;) {
    const WaitResult result =
        wait(lock, -1, [&] { return from_driver_.contains(token); });
    if (result == WaitResult::kEngineDied) return false;
    if (result == WaitResult::kReady) break;
  }
  answer = from_driver_[token];
  from_driver_.erase(token);
  return true;
}

ObjectId Node::reserve_actor() {
  ObjectId id;
  u32 token;
  {
    std::lock_guard lock(mu_);
    token = ++driver_token_;
  }
  if (!ask_driver(Message::kReserveActor, token, {}, id)) return {};
  acquire(id);
  return id;
}

void Node::drop_reserved(ObjectId actor) {
  std::lock_guard lock(mu_);
  send(peer(kDriver).id, Message::kDropActor, view_of(actor));
}

bool Node::hand_to_driver(Task* task, ProcId address) {
  std::string payload;
  Writer writer(payload);
  u32 token;
  {
    std::lock_guard lock(mu_);
    token = ++driver_token_;
    for (ObjectId id : task->pins) {
      hold(id);
      if (Object* object = find(id)) object->shared = true;
    }
    writer.pod(task->actor);
    writer.pod(address);
    writer.pod(task->header);
    writer.bytes(task->args);
    writer.pod(static_cast<u32>(task->deps.size()));
    for (ObjectId id : task->deps) writer.pod(id);
    // The code goes along: this process's memory may not last.
    const ObjectId code{task->header.function_id};
    writer.pod(static_cast<u32>(task->pins.size()));
    for (ObjectId id : task->pins) writer.pod(id == code ? ObjectId{} : id);
    const Value& value = find(code)->value;
    writer.bytes({reinterpret_cast<const char*>(arena_.at(value.block.offset)),
                  value.block.size});
    writer.pod(static_cast<u32>(value.contained.size()));
    for (const Contained& ref : value.contained) writer.pod(ref);
  }
  ObjectId none;
  const bool adopted = ask_driver(Message::kAdoptActor, token, payload, none);
  std::lock_guard lock(mu_);
  for (ObjectId id : task->pins) drop(id);
  task->reset();
  free_tasks_.push_back(task);
  return adopted;
}

void Node::handle_detached(Message kind, Reader& reader, ProcId from) {
  if (kind == Message::kDropActor) {
    const ObjectId id = reader.pod<ObjectId>();
    if (detached_.erase(id.bits) != 0) drop(id);
    return;
  }
  const u32 token = reader.pod<u32>();
  std::string answer(view_of(token));
  switch (kind) {
    case Message::kReserveActor: {
      Object& object = new_object(Object::Kind::kActor);
      object.local = 1;
      object.shared = true;
      ++actors_;
      detached_.insert(object.id.bits);
      answer += view_of(object.id);
      send(from, Message::kActorReserved, answer, Ring::kUrgent);
      break;
    }
    case Message::kAdoptActor: {
      adopt_actor(reader);
      const ObjectId none;
      answer += view_of(none);
      // After the kBorrow messages for what the constructor needs.
      send(from, Message::kActorAdopted, answer, Ring::kUrgent);
      break;
    }
    default:
      from_driver_[token] = reader.pod<ObjectId>();
      resolved_ = true;
      break;
  }
}

void Node::adopt_actor(Reader& reader) {
  Task* task = take_task();
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
  Value code;
  code.kind = Value::Kind::kBlock;
  // Past the store's limit too, as for other code.
  if (const auto block = arena_.allocate(bytes.size(), self_)) {
    std::memcpy(arena_.at(block->offset), bytes.data(), bytes.size());
    code.block = {self_, block->generation, block->offset, bytes.size()};
  }
  code.contained.resize(reader.pod<u32>());
  for (Contained& ref : code.contained) {
    ref = reader.pod<Contained>();
    hold(ref.id);
  }
  task->header.function = code.block;
  const ObjectId function = keep(std::move(code), Object::Kind::kFunction);
  task->header.function_id = function.bits;
  task->pins.push_back(function);
  task->label = trace_.label_of_call(task->actor.bits, "__init__");
  const ObjectId id = task->actor;
  Object* actor = find(id);
  if (actor != nullptr) settle_in(*actor, address);
  const bool failed = actor != nullptr && actor->value.kind == Value::Kind::kFailure;
  std::vector<ObjectId> none;
  start(task, none);
  drop(function);  // the call and the recipe hold it now
  if (failed && detached_.erase(id.bits) != 0) drop(id);
}

}  // namespace skate
