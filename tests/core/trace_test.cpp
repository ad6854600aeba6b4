// What processes tell about themselves: names, counters and events that others read.
#include "core/trace.hpp"

#include <atomic>
#include <mutex>
#include <string>
#include <thread>

#include "check.hpp"
#include "core/labels.hpp"
#include "core/text.hpp"

using namespace skate;

namespace {

constexpr ProcId kProc{3, 1};

ObjectId id_of(u64 n) { return ObjectId::make(kProc, static_cast<u32>(n % 7), n + 1); }

// A part as the supervisor gives it to a process.
struct Part {
  check::SharedMemory memory{sizeof(TracePart)};
  TracePart& part = *memory.as<TracePart>();
  explicit Part(std::string_view title = {}) { begin_trace(part, kProc, true, title); }
};

std::string times(const char* text, int n) {
  std::string all;
  for (int i = 0; i < n; ++i) all += text;
  return all;
}

bool is_valid(std::string_view text) { return valid_text(text) == text; }

const char* const kCharacters[] = {"a", "\u00e9", "\u65e5", "\U0001f600"};

}  // namespace

// Text ------------------------------------------------------------------------------

TEST(text_is_cut_between_characters_at_every_length) {
  for (const char* character : kCharacters) {
    const std::string text = times(character, 60);
    const std::size_t size = std::strlen(character);
    for (std::size_t limit = 0; limit <= text.size() + 3; ++limit) {
      const std::string_view cut = cut_text(text, limit);
      CHECK(cut.size() == std::min(text.size(), limit / size * size));
      CHECK(is_valid(cut));
    }
  }
}

TEST(bytes_that_are_no_text_are_cut_where_they_must) {
  const std::string bytes(40, '\x80');
  for (std::size_t limit = 0; limit <= 40; ++limit) {
    const std::string_view cut = cut_text(bytes, limit);
    CHECK(cut.size() <= limit && cut.size() + 3 >= limit);
  }
}

TEST(what_is_no_character_is_replaced) {
  const std::string replaced = "\xef\xbf\xbd";
  for (const char* bad :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xed\xa0\x80", "\xed\xbf\xbf",
        "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xe6\x97",
        "\xf0\x9f\x98"}) {
    const std::string text = "a" + std::string(bad) + "b";
    CHECK(valid_text(text) ==
          "a" + times(replaced.c_str(), (int)std::strlen(bad)) + "b");
  }
  for (const char* good : kCharacters) CHECK(valid_text(good) == good);
  CHECK(valid_text("\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf") ==
        "\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf");
}

TEST(a_field_holds_valid_text_and_its_end_whatever_comes) {
  for (const char* piece : {"a", "\u65e5", "\U0001f600", "\xed\xa0\x80", "\x80"}) {
    for (int n = 0; n < 60; ++n) {
      char field[32];
      std::memset(field, '#', sizeof field);
      copy_text(field, times(piece, n));
      CHECK(text_in(field).size() < sizeof field);
      CHECK(is_valid(text_in(field)));
      CHECK(n == 0 || !text_in(field).empty());
    }
  }
}

// Recent ----------------------------------------------------------------------------

TEST(a_recent_map_keeps_what_is_used_and_stays_small) {
  Recent<u64, u64> recent(100);
  recent.put(0, 7);
  for (u64 i = 1; i < 100'000; ++i) {
    recent.put(i, i);
    if (i % 50 == 0) CHECK(recent.find(0) != nullptr && *recent.find(0) == 7);
    CHECK(recent.size() <= 200);
    for (u64 back = 0; back < std::min<u64>(i, 20); ++back)
      CHECK(recent.peek(i - back) != nullptr);
  }
  CHECK(recent.find(500) == nullptr);
}

// Labels of blocks ------------------------------------------------------------------

TEST(equal_names_share_a_place_so_that_new_functions_do_not_fill_the_table) {
  const check::SharedMemory memory(sizeof(LabelTable));
  LabelTable& table = *memory.as<LabelTable>();
  Labels labels(&table);
  u32 first = 0;
  for (u64 i = 0; i < 100'000; ++i) {
    const u32 label = labels.add(id_of(i), "closure");
    CHECK(label != 0 && (first == 0 || label == first));
    first = label;
    CHECK(labels.find(id_of(i)) == label);
    CHECK(label_name_of(table, id_of(i)) == "closure");
  }
  CHECK(table.count.load() == 2);
  CHECK(labels.known() < 20'000);
  CHECK(label_name(table, first) == "closure");
  CHECK(labels.add("job.py:3 (main)") == first + 1);
  CHECK(labels.find("job.py:3 (main)") == first + 1);
}

TEST(a_function_is_known_by_its_whole_id) {
  const check::SharedMemory memory(sizeof(LabelTable));
  LabelTable& table = *memory.as<LabelTable>();
  Labels labels(&table);
  const ObjectId one = ObjectId::make({3, 1}, 5, 77);
  const ObjectId later = ObjectId::make({3, 2}, 5, 77);  // of the place's next process
  labels.add(one, "one");
  CHECK(labels.find(later) == 0);
  CHECK(label_name_of(table, later).empty());
}

TEST(a_full_table_gives_no_place_and_forgets_none) {
  const check::SharedMemory memory(sizeof(LabelTable));
  LabelTable& table = *memory.as<LabelTable>();
  Labels labels(&table);
  for (u32 i = 1; i < kMaxLabels; ++i)
    CHECK(labels.add("line " + std::to_string(i)) == i);
  CHECK(labels.add("one more") == 0);
  CHECK(labels.add(id_of(1), "and more") == 0);
  CHECK(labels.find("line 9") == 9);
  CHECK(labels.known() <= kMaxLabels + 1);
  CHECK(label_name(table, 0).empty());
  CHECK(label_name(table, kMaxLabels).empty());
}

TEST(long_names_of_blocks_are_cut_at_characters) {
  const check::SharedMemory memory(sizeof(LabelTable));
  LabelTable& table = *memory.as<LabelTable>();
  Labels labels(&table);
  const std::string name = times("\u65e5", 300);
  const u32 label = labels.add(id_of(1), name);
  CHECK(label_name(table, label) == times("\u65e5", (kLabelBytes - 1) / 3));
  CHECK(labels.add(name) == label);
}

// Labels of calls -------------------------------------------------------------------

TEST(calls_are_named_by_function_name_or_class_and_method) {
  Part p;
  Trace trace(p.part);
  CHECK(trace.find(id_of(1)) == 0);
  const u32 function = trace.add(id_of(1), "work");
  CHECK(trace.find(id_of(1)) == function);
  CHECK(trace.named("work") == function);
  CHECK(trace.add(id_of(2), "work") == function);
  trace.name_actor(id_of(3), "Env");
  trace.name_actor(id_of(4), "Env");
  const u32 step = trace.label_of_call(id_of(3), "step");
  CHECK(trace.label_of_call(id_of(4), "step") == step);
  CHECK(trace.label_of_call_without_gil(id_of(4), "step") == step);
  CHECK(label_text(p.part, step) == "Env.step");
  CHECK(label_text(p.part, trace.label_of_call(id_of(5), "step")) == "?.step");
  CHECK(trace.named("step") != step);
  CHECK(label_text(p.part, trace.named("step")) == "step");
  CHECK(label_text(p.part, 0) == "(others)");
  CHECK(label_text(p.part, 9999) == "(others)");
}

TEST(a_function_of_the_same_place_and_count_but_another_epoch_is_another) {
  Part p;
  Trace trace(p.part);
  trace.add(ObjectId::make({3, 1}, 5, 77), "old");
  CHECK(trace.find(ObjectId::make({3, 2}, 5, 77)) == 0);
  CHECK(trace.find(ObjectId::make({3, 1}, 6, 77)) == 0);
}

TEST(an_actor_and_its_callers_call_a_long_class_the_same) {
  for (const char* character : kCharacters) {
    const std::string title = times(character, 150), method = times(character, 100);
    Part p(title), q;
    Trace own(p.part), caller(q.part);
    caller.name_actor(id_of(1), title);
    const auto here = label_text(p.part, own.label_of_method(method));
    CHECK(here == label_text(q.part, caller.label_of_call(id_of(1), method)));
    CHECK(is_valid(here));
    CHECK(is_valid(text_in(p.part.users[0].title)));
    CHECK(own.title() == text_in(p.part.users[0].title));
  }
}

TEST(the_table_gives_those_without_room_to_the_others_and_keeps_the_rest) {
  Part p;
  Trace trace(p.part);
  for (u32 i = 1; i < kTraceLabels; ++i)
    CHECK(trace.add(id_of(i), std::to_string(i)) == i);
  for (u32 i = 1; i < 5000; ++i) {
    CHECK(trace.named("name " + std::to_string(i)) == 0);
    trace.name_actor(id_of(i), "Class" + std::to_string(i));
    CHECK(trace.label_of_call(id_of(i), "method") == 0);
  }
  CHECK(trace.find(id_of(9)) == 9);
  CHECK(trace.named("17") == 17);
  // The next process at this place knows the names that are there.
  begin_trace(p.part, {3, 2}, true, "");
  Trace next(p.part);
  CHECK(next.named("17") == 17);
  CHECK(next.find(id_of(9)) == 0);
}

TEST(tables_do_not_grow_with_what_ever_was) {
  Part p;
  Trace trace(p.part);
  trace.add(id_of(0), "kept");
  trace.name_actor(id_of(0), "Kept");
  const u32 kept = trace.find(id_of(0));
  const u32 call = trace.label_of_call(id_of(0), "run");
  std::size_t most = 0;
  for (u64 i = 1; i < 200'000; ++i) {
    trace.add(id_of(i), "closure");
    trace.name_actor(id_of(i), "Actor");
    if (i % 1000 ==
        0) {  // what is used is never forgotten, by whichever way it is found
      CHECK(trace.find(id_of(0)) == kept);
      CHECK(trace.label_of_call(id_of(0), "run") == call);
    }
    if (i % 10'000 == 0) most = std::max(most, trace.known());
  }
  CHECK(most <= 4 * (1 << 14) + 2 * kTraceLabels);
  CHECK(label_text(p.part, trace.find(id_of(199'999))) == "closure");
}

TEST(what_a_cache_in_front_serves_counts_as_used) {
  Part p;
  Trace trace(p.part);
  const u32 kept = trace.add(id_of(0), "kept");
  trace.name_actor(id_of(0), "Kept");
  const u32 call = trace.label_of_call(id_of(0), "run");
  const auto place = [](ObjectId id) { return std::hash<ObjectId>{}(id) % 256; };
  for (u64 i = 1; i < 100'000; ++i) {
    if (place(id_of(i)) == place(id_of(0)))
      continue;  // it would push the first one out
    trace.add(id_of(i), "closure");
    trace.name_actor(id_of(i), "Actor");
    if (i % 1000 == 0) CHECK(trace.find(id_of(0)) == kept);
    if (i % 1000 == 0) CHECK(trace.label_of_call(id_of(0), "run") == call);
  }
  for (u64 i = 1; i < 4000; ++i) {  // and now it is pushed out
    trace.add(id_of(i), "closure");
    trace.name_actor(id_of(i), "Actor");
  }
  CHECK(trace.find(id_of(0)) == kept);
  CHECK(trace.label_of_call(id_of(0), "run") == call);
}

// Events ----------------------------------------------------------------------------

TEST(events_are_read_as_they_were_written) {
  Part p;
  Trace trace(p.part);
  const u32 label = trace.add(id_of(1), "work");
  trace.submitted(label, id_of(2));
  Trace::Running good = trace.started(label, id_of(3), 10);
  Trace::Running bad = trace.started(label, id_of(4), 10);
  trace.started(label, id_of(5), 10);
  trace.finished(good, id_of(3), 20, false);
  trace.finished(bad, id_of(4), 20, true);
  trace.waited(TraceEvent::kGet, 0, 17);
  std::vector<SeenEvent> seen;
  for_each_event(p.part, [&](const SeenEvent& event) { seen.push_back(event); });
  CHECK(seen.size() == 5);
  CHECK(seen[0].kind == TraceEvent::kSubmit && seen[0].id == id_of(2));
  CHECK(seen[1].id == id_of(3) && seen[1].end != 0 && !seen[1].failed);
  CHECK(seen[2].id == id_of(4) && seen[2].end != 0 && seen[2].failed);
  CHECK(seen[2].label == label && seen[2].kind == TraceEvent::kRun);
  CHECK(seen[3].id == id_of(5) && seen[3].end == 0);
  CHECK(seen[4].kind == TraceEvent::kGet && seen[4].id == (ObjectId{0, 17}));
  std::vector<ObjectId> running;
  for_each_running(p.part,
                   [&](const SeenEvent& event) { running.push_back(event.id); });
  CHECK(running == std::vector<ObjectId>{id_of(5)});
  // What the one before had begun is not the next one's.
  begin_trace(p.part, {3, 2}, true, "");
  running.clear();
  for_each_running(p.part,
                   [&](const SeenEvent& event) { running.push_back(event.id); });
  CHECK(running.empty());
}

TEST(a_call_that_ends_after_its_event_is_gone_has_one_all_the_same) {
  Part p;
  Trace trace(p.part);
  const Trace::Running call = trace.started(0, id_of(1), 0);
  for (u64 i = 0; i < kTraceEvents; ++i) trace.got(id_of(2));
  trace.finished(call, id_of(1), 0, false);
  u32 found = 0;
  for_each_event(p.part,
                 [&](const SeenEvent& event) { found += event.id == id_of(1); });
  CHECK(found == 1);
}

TEST(a_call_that_fails_after_its_event_is_gone_is_shown_as_failed) {
  Part p;
  Trace trace(p.part);
  const Trace::Running call = trace.started(0, id_of(1), 0);
  for (u64 i = 0; i < kTraceEvents; ++i) trace.got(id_of(2));
  trace.finished(call, id_of(1), 0, true);
  u32 failed = 0;
  for_each_event(p.part, [&](const SeenEvent& event) {
    failed += event.id == id_of(1) && event.failed;
  });
  CHECK(failed == 1);
}

TEST(a_call_that_ends_as_its_place_comes_next_has_an_event_all_the_same) {
  Part p;
  Trace trace(p.part);
  const Trace::Running call = trace.started(0, id_of(1), 0);
  for (u64 i = 0; i + 1 < kTraceEvents; ++i) trace.got(id_of(2));
  trace.finished(call, id_of(1), 0, false);
  u32 found = 0;
  for_each_event(p.part,
                 [&](const SeenEvent& event) { found += event.id == id_of(1); });
  CHECK(found == 1);
}

TEST(a_call_that_runs_is_seen_however_much_happens_meanwhile) {
  Part p;
  Trace trace(p.part);
  trace.got(id_of(0));
  const Trace::Running call = trace.started(0, id_of(1), 0);
  const auto running = [&] {
    std::vector<ObjectId> ids;
    for_each_running(p.part, [&](const SeenEvent& event) { ids.push_back(event.id); });
    return ids;
  };
  for (u64 i = 0; i < 2 * kTraceEvents + 2; ++i) {
    trace.got(id_of(2));
    if (i % kTraceEvents < 3 || i % kTraceEvents > kTraceEvents - 3)
      CHECK(running() == std::vector<ObjectId>{id_of(1)});
  }
  trace.finished(call, id_of(1), 0, true);
  CHECK(running().empty());
  std::vector<SeenEvent> seen;
  for_each_event(p.part, [&](const SeenEvent& event) {
    if (event.id == id_of(1)) seen.push_back(event);
  });
  CHECK(seen.size() == 1 && seen[0].end != 0 && seen[0].failed);
  for (u64 i = 0; i < kTraceEvents; ++i) trace.got(id_of(2));
  for_each_event(p.part, [](const SeenEvent& event) { CHECK(event.id == id_of(2)); });
}

TEST(calls_that_a_former_process_had_begun_are_not_kept) {
  Part p;
  Trace(p.part).started(0, id_of(1), 0);
  begin_trace(p.part, {3, 2}, true, "");
  Trace trace(p.part);
  trace.started(0, id_of(2), 0);
  for (u64 i = 0; i < 2 * kTraceEvents; ++i) trace.got(id_of(3));
  for_each_event(p.part, [](const SeenEvent& event) { CHECK(event.id != id_of(1)); });
}

TEST(more_calls_may_run_than_there_are_events) {
  Part p;
  Trace trace(p.part);
  const Trace::Running call = trace.started(0, id_of(1), 0);
  for (u64 i = 0; i < 2 * kTraceEvents; ++i) trace.started(0, id_of(2), 0);
  trace.finished(call, id_of(1), 0, true);
  std::vector<SeenEvent> seen;
  for_each_event(p.part, [&](const SeenEvent& event) {
    if (event.id == id_of(1)) seen.push_back(event);
  });
  CHECK(seen.size() == 1 && seen[0].end != 0 && seen[0].failed);
}

TEST(the_place_that_is_written_next_is_not_read) {
  Part p;
  Trace trace(p.part);
  for (u64 i = 0; i < kTraceEvents; ++i) trace.got(id_of(i));
  p.part.events[0].id_low = 99;  // the writer is in the middle of it
  CHECK(!read_event(p.part, 0));
  CHECK(read_event(p.part, 1)->id == id_of(1));
  u32 events = 0;
  for_each_event(p.part, [&](const SeenEvent& event) {
    CHECK(event.id == id_of(event.position));
    ++events;
  });
  CHECK(events == kTraceEvents - 1);
}

TEST(what_a_thread_without_the_gil_submits_is_counted_at_once_and_shown_later) {
  Part p;
  Trace trace(p.part);
  const u32 label = trace.add(id_of(1), "work");
  for (u64 i = 0; i < 5000; ++i) trace.submitted_without_gil(label, id_of(i));
  CHECK(p.part.labels[label].submitted.load() == 5000);
  CHECK(trace.known() < 2000);
  trace.got(id_of(1));
  u32 submits = 0;
  for_each_event(p.part, [&](const SeenEvent& event) {
    submits += event.kind == TraceEvent::kSubmit && event.label == label;
  });
  CHECK(submits > 0);
}

// A reader looks while the ring is written round and round; under ThreadSanitizer, too.
TEST(a_reader_sees_whole_events_while_they_are_written) {
  Part p;
  Trace trace(p.part);
  std::atomic<bool> done{false};
  std::atomic<u64> looks{0};
  check::in_threads(3, [&](int thread) {
    if (thread == 0) {
      for (u64 i = 0; i < 4 * kTraceEvents * check::kLoad || looks.load() < 8; ++i) {
        const ObjectId id{i, ~i};
        if (i % 2 == 0)
          trace.submitted(static_cast<u32>(i % kTraceLabels), id);
        else
          trace.finished(trace.started(static_cast<u32>(i % kTraceLabels), id, 0), id,
                         0, i % 4 == 1);
      }
      done = true;
      return;
    }
    while (!done.load()) {
      for_each_event(p.part, [&](const SeenEvent& event) {
        CHECK(event.id.low == ~event.id.high);
        CHECK(event.label == event.id.high % kTraceLabels);
        CHECK(event.position == event.id.high);
        CHECK(event.kind ==
              (event.id.high % 2 == 0 ? TraceEvent::kSubmit : TraceEvent::kRun));
        CHECK(event.start != 0 && (event.end == 0 || event.end >= event.start));
        if (event.end != 0) CHECK(event.failed == (event.id.high % 4 == 1));
      });
      for_each_running(p.part, [](const SeenEvent& event) {
        CHECK(event.kind == TraceEvent::kRun);
      });
      ++looks;
    }
  });
}

TEST(a_reader_sees_what_is_waited_for_as_one_wait) {
  Part p;
  Trace trace(p.part);
  std::atomic<bool> done{false};
  std::atomic<u64> looks{0};
  check::in_threads(4, [&](int thread) {
    if (thread < 2) {  // several threads of a process may wait
      for (u64 i = 0; i < 20'000ULL * check::kLoad || looks.load() < 100; ++i) {
        const u64 n = 1 + i % (kMaxNamed + 2);
        trace.waits_for(i % 2 == 0 ? kWaitsForAll : kWaitsForSome, i % 2 == 0, i,
                        std::vector<ObjectId>(n + 1, {i, ~i}), 1);
        if (i % 16 == 0) trace.waits_no_more();
      }
      done = true;
      return;
    }
    while (!done.load()) {
      const Waited waited = read_waited(p.part);
      CHECK(waited.ids.size() <= kMaxNamed);
      for (const ObjectId id : waited.ids) {
        CHECK(id.high == waited.since && id.low == ~waited.since);
        CHECK(waited.ends == (waited.since % 2 == 0));
        CHECK(waited.kind == (waited.since % 2 == 0 ? kWaitsForAll : kWaitsForSome));
        CHECK(waited.ids.size() ==
              std::min<u64>(kMaxNamed, 1 + waited.since % (kMaxNamed + 2)));
      }
      ++looks;
    }
  });
}

TEST(a_process_that_was_killed_in_the_middle_of_a_write_leaves_a_part_for_the_next) {
  Part p;
  {
    Trace trace(p.part);
    trace.submitted(0, id_of(1));
    trace.waits_for(kWaitsForAll, false, 1, {id_of(1)}, 0);
  }
  p.part.waited_version.fetch_add(1);
  p.part.events[1].id_low = 99;  // of an event that was not counted any more
  CHECK(read_waited(p.part).ids.empty());
  begin_trace(p.part, {3, 2}, true, "");
  Trace next(p.part);
  CHECK(read_waited(p.part).ids.empty());
  next.waits_for(kWaitsForSome, false, 2, {id_of(2)}, 0);
  CHECK(read_waited(p.part).ids == std::vector<ObjectId>{id_of(2)});
  u32 events = 0;
  for_each_event(p.part, [&](const SeenEvent&) { ++events; });
  CHECK(events == 1);
}

// Two threads that take turns, as holders of the GIL do, and one that has it not.
TEST(a_thread_without_the_gil_may_ask_for_labels) {
  Part p;
  Trace trace(p.part);
  std::mutex gil, node;
  constexpr u64 kRounds = 4000;
  check::in_threads(3, [&](int thread) {
    for (u64 i = 0; i < kRounds; ++i) {
      const ObjectId actor = id_of(i % 600);
      const std::string title = "Class" + std::to_string(i % 40);
      if (thread == 2) {
        std::lock_guard lock(node);
        const u32 label = trace.label_of_call_without_gil(actor, "__init__");
        trace.submitted_without_gil(label, actor);
        continue;
      }
      std::lock_guard held(gil);
      trace.name_actor(actor, title);
      const u32 label = trace.label_of_call(actor, "__init__");
      CHECK(label_text(p.part, label).ends_with("__init__"));
      const u32 function = trace.add(actor, "f" + std::to_string(i % 50));
      CHECK(trace.find(actor) == function);
      std::lock_guard lock(node);
      trace.submitted(label, actor);
    }
  });
  u64 submitted = 0;
  for (u32 i = 0; i < p.part.num_labels.load(); ++i)
    submitted += p.part.labels[i].submitted.load();
  CHECK(submitted == 3 * kRounds);
}

TEST_MAIN()
