// bench/job/7b.cpp — LLaMA-2 7B, adapters of rank 64 on every linear layer. The build makes the files of the other
// models from this one.
#include "job.hpp"

qlora::bench::JobFigures qlora::bench::job_7b(const JobSettings& settings) { return run_job_of<llama2_7b>(settings); }
