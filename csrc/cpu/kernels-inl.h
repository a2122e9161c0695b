// All kernels of one instruction set. kernels_<isa>.cpp includes this and exports one table.
#pragma once

#include "attention-inl.h"
#include "kernel_tables.h"
#include "layer_norm-inl.h"
#include "linear-inl.h"
