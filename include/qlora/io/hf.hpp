// qlora/io/hf.hpp — Hugging Face model directories: ModelDir reads them, ModelWriter writes them.
#pragma once

#include "qlora/io/hf_config.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/hf_writer.hpp"
