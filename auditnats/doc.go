// Package auditnats publishes the history of a PostgreSQL database to NATS JetStream: every
// change that the history holds is one message of a stream, in commit order, once.
//
//	sink, err := auditnats.New(auditnats.Config{Client: client, JetStream: js, Stream: "AUDIT"})
//	if err != nil {
//		return err
//	}
//	return sink.Run(ctx)
//
// A message has the JSON of an [audit.Change] and, by default, the subject
// audit.<schema>.<table>. Its id (Nats-Msg-Id) is source:position:sequence.
//
// # Once, and in order
//
// The history stays the truth, and nothing of it depends on the broker: while that is away,
// the sink waits, and goes on where it was. It is the stream that says where that is. Each
// message carries the cursor behind its change in a header, so publishing and keeping the
// cursor are one write, and a kill comes before both or behind both. And each message says
// behind which sequence of the stream it goes, so that the stream takes it there or not at all:
// one that was lost lets none behind it through, and one that is sent twice is refused the second
// time, however much later, inside of the stream's window for duplicates and outside of it.
//
// For this a stream belongs to one sink: what else publishes to it is an error. Several
// instances of a program may run the sink nevertheless. One of them publishes, the others wait
// and one takes over when it ends; while two of them try, the stream lets only one through.
//
// The cursor is also kept in a key-value bucket, for streams whose last message may be gone: where
// consumers take messages away (a work queue), or MaxAge does.
//
// # What is missing
//
// Where the history has a gap, or where retention has dropped what was not published yet, Run
// ends with a [*LossError] rather than leave it out silently. With [PublishLoss] consumers are
// told by a message instead.
package auditnats
