package clients

import (
	"math/rand/v2"
	"net/url"
	"strconv"

	"shoal/sim/history"
)

// Habit is what a client does: shares of a hundred, what is missing are gets.
type Habit struct {
	Lists, Creates, Updates, Deletes int
	// Reads are the consistencies of its reads, of which one is drawn each time; the more often one stands here, the more likely.
	Reads []history.Consistency
}

// Everything is the habit of a client that does everything.
var Everything = Habit{Lists: 10, Creates: 17, Updates: 26, Deletes: 12, Reads: []history.Consistency{
	history.Linearizable, history.Linearizable, history.Linearizable, history.Linearizable, history.Linearizable,
	history.Any, history.Any, history.NotOlder, history.NotOlder, history.Exact,
}}

// Writer is the habit of a client that mostly writes, and otherwise reads what it is about to change.
var Writer = Habit{Creates: 35, Updates: 40, Deletes: 20, Reads: []history.Consistency{history.Linearizable}}

// Reader is the habit of a client that reads only, and only so.
func Reader(consistency history.Consistency) Habit {
	return Habit{Lists: 40, Reads: []history.Consistency{consistency}}
}

// draw chooses what to do next.
func (h Habit) draw(chance *rand.Rand) history.Kind {
	n := chance.IntN(100)
	for _, share := range []struct {
		of   int
		kind history.Kind
	}{{h.Lists, history.List}, {h.Creates, history.Create}, {h.Updates, history.Update}, {h.Deletes, history.Delete}} {
		if n < share.of {
			return share.kind
		}
		n -= share.of
	}
	return history.Get
}

// freshness chooses how fresh a read shall be, and says so to the API. A single object has no exact reads.
func (c *Client) freshness(op *history.Operation) url.Values {
	query := url.Values{}
	wanted := c.habit.Reads[c.chance.IntN(len(c.habit.Reads))]
	if wanted == history.Exact && op.Kind != history.List {
		wanted = history.NotOlder
	}
	switch {
	case wanted == history.Any:
		op.Consistency = history.Any
		query.Set("resourceVersion", "0")
	case wanted == history.NotOlder && c.seen != 0:
		op.Consistency, op.Revision = history.NotOlder, c.seen
		query.Set("resourceVersion", strconv.FormatInt(c.seen, 10))
		if op.Kind == history.List {
			query.Set("resourceVersionMatch", "NotOlderThan")
		}
	case wanted == history.Exact && len(c.recent) > 0:
		op.Consistency, op.Revision = history.Exact, c.recent[c.chance.IntN(len(c.recent))]
		query.Set("resourceVersion", strconv.FormatInt(op.Revision, 10))
		query.Set("resourceVersionMatch", "Exact")
	}
	return query
}
