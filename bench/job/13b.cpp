// bench/job/13b.cpp — LLaMA-2 13B, adapters of rank 64 on every linear layer.
#include "job.hpp"

qlora::bench::JobFigures qlora::bench::job_13b(const JobSettings& settings) { return run_job_of<llama2_13b>(settings); }
