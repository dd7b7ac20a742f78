// Package auditriver carries the audit context of a request into the jobs of River
// (github.com/riverqueue/river) that it asks for: what a worker writes says on whose
// behalf, on account of which request, and which attempt at which job it was.
//
//	workers := river.NewWorkers()
//	river.AddWorker(workers, &billWorker{db: auditpgx.Wrap(pool)})
//	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
//		Middleware: []rivertype.Middleware{auditriver.NewMiddleware(nil)},
//		Queues:     map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 10}},
//		Workers:    workers,
//	})
//
// Handlers insert jobs with the ctx of the request, and workers write with the ctx that
// Work is given, through auditpgx, auditsql or auditgorm. A client that only inserts
// needs the middleware as well.
//
// # What a job's writes say
//
// The context of whoever inserted the job, as it was then: user, request, endpoint,
// tenant and the rest. So Changes().InRequest finds what a request has set off, and
// reverting the request takes it back. Over it go the worker, which is the kind of the
// job, the members "job" and "attempt", and the OpenTelemetry span that is active when
// the job is worked. Each attempt begins from the job's context again, and so does each
// job: nothing of one gets to another. A job that was inserted by nobody in particular,
// a periodic one for instance, says worker, job and attempt, and what the ctx that
// river.Client.Start was given carries, if it carries anything: give it no context of a request.
//
// A job that a job inserts carries that on. One that exists already, by UniqueOpts, keeps
// the context of who asked first.
//
// The context is in the metadata of the job, under [MetadataKey], with the limits of
// audit.StampContent. What in it is no JSON is left out and logged. Metadata are the
// database's: whoever may write river_job may write another context there.
//
// # River's own tables
//
// River changes river_job with each step of a job. Those tables are among what the SDK
// does not track by itself, so there is nothing to configure: see docs/operations.md.
package auditriver
