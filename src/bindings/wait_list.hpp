// skate.wait: lists of refs, split into those that have values and the rest.
#pragma once

#include "common.hpp"

namespace skate {

// The first `num_returns` refs that have values, and all others, in order.
nb::tuple wait_for(Node& node, nb::list refs, std::size_t num_returns,
                   std::optional<double> timeout);

// The ids of a list or tuple of refs.
std::vector<ObjectId> ids_of(nb::handle refs);

}  // namespace skate
