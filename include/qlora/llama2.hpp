// qlora/llama2.hpp — the door: include this one header.
//   configs     llama2_7b, _13b, _70b and their _chat forms      configs/qlora/configs/llama2.hpp
//   Model       weights, and adapters by name                    model/model.hpp -> weights.hpp -> qlinear.hpp
//   Context     where one thread computes with a model           model/context.hpp
//   Trainer     QLoRA steps                                      train/trainer.hpp -> model/network.hpp -> block.hpp
//   Generator   continuations and chat                           generate/generator.hpp
//   Scorer      log-likelihoods                                  generate/scorer.hpp
//   backend     what the network calls                           backend.hpp
//     Cpu<>     on any machine                                   cpu.hpp -> cpu/linear.hpp and its neighbours
//     Cuda      where the target qlora::cuda is linked           qlora/cuda.hpp -> cuda/rowwise/swiglu.cuh and others
// To a kernel: block.hpp calls b_.swiglu(...); backend.hpp names the files of every op, here cpu/swiglu.hpp and
// cuda/rowwise/swiglu.cuh.
// Includes the standard library and Eigen only, no CUDA headers. Files, tokenizer, web pages and reports are headers of
// their own: qlora/io/hf.hpp, qlora/text/tokenizer.hpp, qlora/web/fetch.hpp, qlora/eval/report.hpp.
#pragma once

#include "qlora/configs/llama2.hpp"
#include "qlora/cpu.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/generate/scorer.hpp"
#include "qlora/model/cards.hpp"
#include "qlora/model/init.hpp"
#include "qlora/model/model.hpp"
#include "qlora/train/fits.hpp"
#include "qlora/train/loop.hpp"
#include "qlora/train/trainer.hpp"
#ifdef QLORA_CUDA
#include "qlora/cuda.hpp"
#endif
