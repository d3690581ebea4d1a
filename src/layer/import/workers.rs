//! Threads that hash and store while the importing thread walks or reads.

use std::num::NonZeroUsize;
use std::thread;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use super::ImportError;

/// Jobs that may wait for each worker. Few, because a job holds a buffer or a descriptor.
const QUEUED_PER_WORKER: usize = 1;

/// The importing thread's end of the pool.
pub(super) struct Workers<J, R> {
    jobs: Sender<J>,
    results: Receiver<Result<R, ImportError>>,
}

/// Runs `drive` with `threads` workers that turn jobs into results by `work`.
///
/// Results come in any order; what is made of them must not depend on it. The first error of a
/// worker reaches `drive` with its next call.
pub(super) fn with_workers<J: Send, R: Send, T>(
    threads: NonZeroUsize,
    work: impl Fn(J) -> Result<R, ImportError> + Sync,
    drive: impl FnOnce(Workers<J, R>) -> Result<T, ImportError>,
) -> Result<T, ImportError> {
    thread::scope(|scope| {
        let (job_sender, job_receiver) = bounded::<J>(threads.get() * QUEUED_PER_WORKER);
        let (result_sender, result_receiver) = unbounded();
        for _ in 0..threads.get() {
            let (jobs, results) = (job_receiver.clone(), result_sender.clone());
            let work = &work;
            let run = move || {
                for job in jobs {
                    let result = work(job);
                    let failed = result.is_err();
                    if results.send(result).is_err() || failed {
                        break;
                    }
                }
            };
            thread::Builder::new()
                .name("mica-import".to_owned())
                .spawn_scoped(scope, run)
                .map_err(ImportError::Thread)?;
        }
        drop((job_receiver, result_sender));
        drive(Workers { jobs: job_sender, results: result_receiver })
    })
}

impl<J, R> Workers<J, R> {
    /// Hands a job over, waiting while the queue is full; gives finished results to `take`.
    pub(super) fn submit(
        &self,
        job: J,
        mut take: impl FnMut(R) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        for result in self.results.try_iter() {
            take(result?)?;
        }
        if self.jobs.send(job).is_err() {
            // Workers end early only after an error, which is among the results.
            for result in self.results.iter() {
                take(result?)?;
            }
            return Err(ImportError::Cancelled);
        }
        Ok(())
    }

    /// Waits for all jobs; gives their results to `take`.
    pub(super) fn finish(
        self,
        mut take: impl FnMut(R) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        drop(self.jobs);
        for result in self.results.iter() {
            take(result?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREADS: NonZeroUsize = NonZeroUsize::new(3).expect("3 is not 0");

    #[test]
    fn every_job_has_its_result() {
        let sum = with_workers(
            THREADS,
            |job: u64| Ok(job * 2),
            |workers| {
                let mut sum = 0;
                let mut take = |result| {
                    sum += result;
                    Ok(())
                };
                for job in 0..1000 {
                    workers.submit(job, &mut take)?;
                }
                workers.finish(&mut take)?;
                Ok(sum)
            },
        );
        assert_eq!(sum.unwrap(), 999_000);
    }

    #[test]
    fn an_error_of_one_worker_stops_the_import() {
        let result = with_workers(
            THREADS,
            |job: u64| {
                if job == 50 {
                    return Err(ImportError::NotASource("job 50".to_owned()));
                }
                Ok(())
            },
            |workers| {
                for job in 0..100_000 {
                    workers.submit(job, |()| Ok(()))?;
                }
                workers.finish(|()| Ok(()))
            },
        );
        assert!(matches!(result, Err(ImportError::NotASource(_))), "{result:?}");
    }
}
