#include "results.hpp"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "node.hpp"

namespace skate {

Results::Results(Node& node) : node_(node), home_(node.home) {}

void Results::take(Reader& reader, ProcId from, std::vector<Value>& values) {
  Objects& objects = node_.objects;
  values.resize(std::min<std::size_t>(reader.pod<u32>(), reader.remaining()));
  for (Value& value : values) reader.value(value);
  bool holds_others = false;
  // Objects that come with it are ours from now on, under names of our own.
  std::unordered_map<ObjectId, ObjectId> given;
  std::vector<ObjectId> received(
      std::min<std::size_t>(reader.pod<u32>(), reader.remaining()));
  for (ObjectId& id : received) {
    const ObjectId former = reader.pod<ObjectId>();
    const bool kept = reader.pod<bool>();
    Object& object = objects.create(Object::Kind::kData);
    Value value;
    reader.value(value);
    objects.set_value(object, std::move(value));
    object.ready = true;
    object.shared = true;
    id = object.id;
    given.emplace(former, id);
    if (!kept) continue;
    node_.lending.rename(object, former, from);
    holds_others = true;
  }
  const auto count = [&](Value& value) {
    for (Contained& ref : value.contained) {
      const auto it = given.find(ref.id);
      if (it != given.end()) {
        ref.id = it->second;
      } else {
        holds_others = true;
        ref.id = node_.lending.current_name(ref.id);
      }
      objects.hold(ref.id);
    }
    if (value.kind == Value::Kind::kBlock && value.block.proc != home_.self &&
        !home_.lives(value.block.proc))
      node_.deaths.come_by(value.block.proc, kCameByBlocks, kHoldsBlocks);
  };
  for (Value& value : values) count(value);
  for (ObjectId id : received) {
    Value& value = objects.find(id)->value;
    count(value);
    // Where it comes from its maker's own arena, that one knows, or is gone.
    if (value.has_own_block() && value.block.proc != from)
      tell_arena({value.block, home_.self, kNobody, value.hops});
  }
  // After the kBorrow messages that hold() sent.
  if (holds_others && from != home_.self)
    node_.mail.send(from, Message::kResultTaken, {});
}

void Results::send(Message kind, const Incoming& task, std::vector<Value>& values,
                   std::string& message) {
  Peer* const owner = node_.mail.reach(task.owner);
  if (owner == nullptr) {
    for (Value& value : values) node_.objects.free_unsent(task.header.task_id, value);
    return;
  }
  // Only now: blocks of an owner that dies are freed, and these were being written.
  for (const Value& value : values)
    if (value.has_own_block() && value.block.proc == home_.self)
      node_.store.set_owner(value.block, task.owner);
  Writer writer(message);
  writer.pod(static_cast<u32>(values.size()));
  for (const Value& value : values) writer.value(value);
  // Telling arenas about new owners may send messages of its own.
  std::vector<ObjectId> kept;
  give_away(values, task.owner, message, kept);
  const bool is_held = !kept.empty();
  if (is_held) {
    for (Value& value : values) node_.objects.mark_shared(value);
    owner->untaken.push_back(std::move(kept));
  }
  const bool failed = std::any_of(values.begin(), values.end(),
                                  [](const Value& value) { return value.is_error; });
  const bool counts = kind == Message::kResult && !failed;
  try {
    node_.mail.send(task.owner, kind, message, counts ? Ring::kResult : Ring::kUsual);
  } catch (const std::bad_alloc&) {
    if (is_held) {  // nobody will say that these have been counted
      kept = std::move(owner->untaken.back());
      owner->untaken.pop_back();
      for (const ObjectId id : kept) node_.objects.drop_quietly(id);
    }
    throw;
  }
}

// Gives `to` what only this result still holds, and what only that holds, and so on.
// Appends it to the message.
void Results::give_away(std::vector<Value>& values, ProcId to, std::string& message,
                        std::vector<ObjectId>& kept) {
  if (std::all_of(values.begin(), values.end(),
                  [](const Value& value) { return value.contained.empty(); })) {
    Writer(message).pod(u32{0});
    return;
  }
  std::unordered_map<ObjectId, u32> entries;  // how often the result holds an object
  std::vector<Object*> given;
  const auto own = [&](const Contained& ref) -> Object* {
    Object* object =
        ref.id.owner() == home_.self ? node_.objects.find(ref.id) : nullptr;
    const bool can_be_given = object != nullptr && object->ready && !object->given &&
                              object->kind == Object::Kind::kData;
    return can_be_given ? object : nullptr;
  };
  const auto look = [&](const Value& value) {
    for (const Contained& ref : value.contained) {
      Object* object = own(ref);
      if (object != nullptr && object->borrowers.empty() &&
          object->local == ++entries[ref.id])
        given.push_back(object);
    }
  };
  if (node_.mail.is_emptied()) {
    for (const Value& value : values) look(value);
    for (std::size_t i = 0; i < given.size(); ++i) look(given[i]->value);
  }
  if (to.index != kDriver) bring_lenders(given);
  std::unordered_set<ObjectId> given_ids;
  for (const Object* object : given) given_ids.insert(object->id);
  std::vector<Object*> lent;  // given and kept
  if (to.index == kDriver) {
    std::unordered_set<ObjectId> lent_ids;
    const auto look_again = [&](const Value& value) {
      for (const Contained& ref : value.contained) {
        Object* object = own(ref);
        if (object != nullptr && !given_ids.contains(ref.id) &&
            lent_ids.insert(ref.id).second)
          lent.push_back(object);
      }
    };
    for (const Value& value : values) look_again(value);
    for (const Object* object : given) look_again(object->value);
    for (std::size_t i = 0; i < lent.size(); ++i) look_again(lent[i]->value);
  }
  const auto keep = [&](const Value& value) {
    for (const Contained& ref : value.contained)
      if (!given_ids.contains(ref.id)) kept.push_back(ref.id);
  };
  for (const Value& value : values) keep(value);
  Writer writer(message);
  writer.pod(static_cast<u32>(given.size() + lent.size()));
  for (Object* object : given) {
    keep(object->value);
    writer.pod(object->id);
    writer.pod(false);
    give_block(object->value, to);
    writer.value(object->value);
    const Value gone = node_.objects.take_value(*object);
    node_.objects.forget(*object);
  }
  for (Object* object : lent) {
    writer.pod(object->id);
    writer.pod(true);
    give_block(object->value, to);
    writer.value(object->value);
    object->given = true;
    object->shared = true;
  }
}

// An error whose block another object of this process lends, and keeps, would end with
// this process: such errors share a copy, which goes with them. Without memory for that
// they stay lent.
void Results::bring_lenders(std::vector<Object*>& given) {
  const bool any = std::any_of(given.begin(), given.end(), [](const Object* object) {
    return object->value.is_lent;
  });
  if (!any) return;
  std::unordered_set<ObjectId> there;
  for (const Object* object : given) there.insert(object->id);
  std::unordered_map<ObjectId, Object*> copies;
  for (std::size_t i = 0, n = given.size(); i < n; ++i) {
    Value& error = given[i]->value;
    if (!error.is_lent || there.contains(error.contained.back().id)) continue;
    const ObjectId lender = error.contained.back().id;
    Object*& copy = copies[lender];
    if (copy == nullptr) {
      Value value;
      value.is_error = true;
      node_.store.copy_error(error.block, value);
      if (value.kind != Value::Kind::kBlock) return;
      copy =
          node_.objects.find(node_.objects.keep(std::move(value), Object::Kind::kData));
      given.push_back(copy);
    } else {
      node_.objects.hold(copy->id);
    }
    // set_value has counted it, if it lies elsewhere.
    if (error.block.proc != home_.self) node_.deaths.uncount_block(error.block.proc);
    error.block = copy->value.block;
    error.contained.back() = {copy->id, copy->id};
    node_.objects.drop(lender);
  }
}

void Results::give_block(Value& value, ProcId to) {
  if (!value.has_own_block()) return;
  ++value.hops;
  const bool own = value.block.proc == home_.self;
  tell_arena({value.block, to, own ? kNobody : home_.self, value.hops});
}

void Results::tell_arena(const Handing& handing) {
  const ProcId arena = handing.block.proc;
  if (arena == home_.self) {
    node_.store.hand(handing);
  } else if (home_.lives(arena)) {
    node_.mail.send(arena, Message::kGiveBlock, view_of(handing));
  } else {
    node_.estate.hand(handing);
  }
}

}  // namespace skate
