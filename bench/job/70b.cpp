// bench/job/70b.cpp — LLaMA-2 70B, adapters of rank 64 on every linear layer.
#include "job.hpp"

qlora::bench::JobFigures qlora::bench::job_70b(const JobSettings& settings) { return run_job_of<llama2_70b>(settings); }
