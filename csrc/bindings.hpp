// What each bindings_*.cpp adds to the module. Only these files and bindings.cpp include pybind11.
#pragma once

#include <pybind11/pybind11.h>

namespace omr {

void bind_text(pybind11::module_& m);        // normalisation and pieces
void bind_vocabulary(pybind11::module_& m);  // a vocabulary and its compiled form
void bind_encoder(pybind11::module_& m);     // texts to ids and back
void bind_chat(pybind11::module_& m);        // conversations to ids and mask
void bind_samples(pybind11::module_& m);     // a sample's texts, headers and names, for conversion
void bind_pixels(pybind11::module_& m);      // pixels to patches
void bind_pack(pybind11::module_& m);        // samples to the integers of a batch
void bind_packing(pybind11::module_& m);     // lengths to bins, packs to ranks
void bind_axis_weights(pybind11::module_& m);  // a resize's weights, for a GPU's kernels
void bind_convert(pybind11::module_& m);     // plain rows of a corpus to tars and index columns

}  // namespace omr
