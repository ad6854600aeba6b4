// What both languages must agree on: it is written in C++, and read from here by
// Python.
#include <nanobind/nanobind.h>

#include <string>

#include "call_options.hpp"
#include "core/blocks.hpp"
#include "core/explain.hpp"
#include "core/limits.hpp"
#include "core/message.hpp"
#include "core/node.hpp"
#include "core/streams.hpp"
#include "core/supervisor_link.hpp"
#include "core/trace.hpp"

namespace nb = nanobind;
using namespace skate;

void bind_constants(nb::module_& m) {
  m.attr("build_type") = SKATE_BUILD_TYPE;
  m.attr("is_small") = kSmallBuild;
  m.attr("MAX_PROCS") = kMaxProcs;
  m.attr("MAX_CPUS") = kMaxCpus;
  m.attr("FIRST_EPOCH") = kFirstEpoch;
  m.attr("DRIVER") = kDriver;
  nb::list method_fields;
  for (const char* field : Method::kFields) method_fields.append(field);
  m.attr("METHOD_FIELDS") = nb::tuple(method_fields);

  nb::enum_<SystemError>(m, "SystemError", nb::is_arithmetic(),
                         "Why there is no value.")
      .value("NONE", SystemError::kNone)
      .value("WORKER_CRASHED", SystemError::kWorkerCrashed)
      .value("ACTOR_DIED", SystemError::kActorDied)
      .value("OWNER_DIED", SystemError::kOwnerDied)
      .value("ACTOR_UNAVAILABLE", SystemError::kActorUnavailable)
      .value("CANCELLED", SystemError::kCancelled)
      .value("NO_RESOURCES", SystemError::kNoResources);
  nb::enum_<DeathCause>(m, "DeathCause", nb::is_arithmetic(), "Why a process ended.")
      .value("UNKNOWN", DeathCause::kUnknown)
      .value("EXITED", DeathCause::kExited)
      .value("SIGNALED", DeathCause::kSignaled)
      .value("KILLED", DeathCause::kKilled)
      .value("OUT_OF_SCOPE", DeathCause::kOutOfScope)
      .value("CONSTRUCTOR_FAILED", DeathCause::kConstructorFailed)
      .value("ACTOR_EXIT", DeathCause::kActorExit)
      .value("OWNER_ENDED", DeathCause::kOwnerEnded)
      .value("RUNTIME_ENV_FAILED", DeathCause::kRuntimeEnvFailed)
      .value("NO_PROCESS", DeathCause::kNoProcess)
      .value("OUT_OF_MEMORY", DeathCause::kOutOfMemory);
  nb::enum_<Incoming::Notice>(m, "Notice", nb::is_arithmetic(),
                              "Of a call given earlier.")
      .value("NONE", Incoming::Notice::kNone)
      .value("CANCELLED", Incoming::Notice::kCancelled)
      .value("ITEMS_READ", Incoming::Notice::kItemsRead);
  nb::enum_<NextItem>(m, "NextItem", nb::is_arithmetic(),
                      "What Node.look_at_stream says.")
      .value("ITEM", NextItem::kItem)
      .value("END", NextItem::kEnd)
      .value("NOT_YET", NextItem::kNotYet);
  nb::enum_<ProcState>(m, "ProcState", nb::is_arithmetic(), "What a process does.")
      .value("NONE", ProcState::kNone)
      .value("STARTING", ProcState::kStarting)
      .value("PARKED", ProcState::kParked)
      .value("SEARCHING", ProcState::kSearching)
      .value("RUNNING", ProcState::kRunning)
      .value("BLOCKED", ProcState::kBlocked)
      .value("LEAVING", ProcState::kLeaving);
  nb::enum_<Explanation::State>(m, "WhyState", nb::is_arithmetic(),
                                "Why an object has no value yet: see core/explain.hpp.")
      .value("UNKNOWN", Explanation::kUnknown)
      .value("READY", Explanation::kReady)
      .value("FAILED", Explanation::kFailed)
      .value("NEEDS", Explanation::kNeeds)
      .value("QUEUED", Explanation::kQueued)
      .value("TAKEN", Explanation::kTaken)
      .value("LEASE", Explanation::kLease)
      .value("SENT", Explanation::kSent)
      .value("BEHIND", Explanation::kBehind)
      .value("RECEIVED", Explanation::kReceived);
  m.attr("EVENT_SUBMIT") = static_cast<int>(TraceEvent::kSubmit);
  m.attr("EVENT_RUN") = static_cast<int>(TraceEvent::kRun);
  m.attr("EVENT_GET") = static_cast<int>(TraceEvent::kGet);
  m.attr("EVENT_GOT") = static_cast<int>(TraceEvent::kGot);
  m.attr("EVENT_SPAN") = static_cast<int>(TraceEvent::kSpan);
  m.attr("EVENT_WAIT") = static_cast<int>(TraceEvent::kWait);
  nb::enum_<BlockState>(m, "BlockState", nb::is_arithmetic(),
                        "Where a block of Node.list_blocks is: see core/blocks.hpp.")
      .value("FIXED", BlockState::kFixed)
      .value("RESIDENT", BlockState::kResident)
      .value("LEAVING", BlockState::kLeaving)
      .value("EMPTYING", BlockState::kEmptying)
      .value("ON_DISK", BlockState::kOnDisk)
      .value("CODE", BlockState::kCode)
      .value("DROPPED", BlockState::kDropped)
      .value("HOLED", BlockState::kHoled)
      .value("FREE", BlockState::kFree);

  // Between the processes and the supervisor.
  nb::enum_<Forget>(m, "Forget", nb::is_arithmetic(),
                    "How much of a dead process can go.")
      .value("BORROWS", Forget::kBorrows)
      .value("OBJECTS", Forget::kObjects)
      .value("ALL", Forget::kAll);
  m.attr("HOLDS_OBJECTS") = kHoldsObjects;
  m.attr("HOLDS_BLOCKS") = kHoldsBlocks;
  m.attr("CAME_BY_OBJECTS") = kCameByObjects;
  m.attr("CAME_BY_BLOCKS") = kCameByBlocks;
  m.attr("MAX_PACKET") = SupervisorLink::kMaxInline;
  m.attr("NOTE_BOXED") = nb::bytes(&SupervisorLink::kBoxed, 1);
  m.attr("NOTE_CANNOT_ANSWER") = nb::bytes(&SupervisorLink::kCannotAnswer, 1);
  const auto note = [&](const char* name, Note value) {
    const char byte = static_cast<char>(value);
    m.attr((std::string("NOTE_") + name).c_str()) = nb::bytes(&byte, 1);
  };
  note("MAP", Note::kMap);
  note("ASK", Note::kAsk);
  note("TELL", Note::kTell);
  note("WANT_WORKER", Note::kWantWorker);
  note("WANT_LEASE", Note::kWantLease);
  note("DROP_LEASE", Note::kDropLease);
  note("LEASE_DONE", Note::kLeaseDone);
  note("BLOCKED", Note::kBlocked);
  note("RUNNING", Note::kRunning);
  note("TOKEN_FREE", Note::kTokenFree);
  note("SPILL_FILE", Note::kSpillFile);
  note("CONFIRM", Note::kConfirm);
  note("LET_GO", Note::kLetGo);
  note("UNWANTED", Note::kUnwanted);
  note("UNREACHED", Note::kUnreached);
}
