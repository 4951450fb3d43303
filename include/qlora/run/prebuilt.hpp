// qlora/run/prebuilt.hpp — the steps of run/ (train, compare, run_job, ...) compiled once in a program of many files.
// Without a macro each file compiles the steps that it calls. Where QLORA_PREBUILT_RUN is defined, the header of a step
// only declares it, with the types that it takes and returns. One file of such a program defines QLORA_RUN_CODE before
// its first include: it gets the definitions, and brings the object code of the steps whose headers it includes.
#pragma once

#ifndef QLORA_PREBUILT_RUN
/// Before the declaration and the definition of a step: nothing in a program that compiles steps once.
#define QLORA_STEP inline
#else
#define QLORA_STEP
#endif

#if !defined(QLORA_PREBUILT_RUN) || defined(QLORA_RUN_CODE)
/// Defined where a file gets the definitions of steps.
#define QLORA_STEP_CODE
#endif
