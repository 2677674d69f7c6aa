package clients

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/sim/history"
)

// watcher keeps a watch open, ends it now and then by itself, and resumes it on another peer.
type watcher struct {
	id        int
	chance    *rand.Rand
	recorder  *Recorder
	apis      []*API
	resource  *resource
	namespace string // "" for all
	prefix    string // of the namespaces that count

	// resume are revisions from which the next watch may go on, the last of them the newest; without any the next one begins with what is
	// there.
	resume []int64
}

// run watches until the context ends.
func (w *watcher) run(ctx context.Context) {
	for ctx.Err() == nil {
		at := w.chance.IntN(len(w.apis))
		var after int64
		switch n := len(w.resume); {
		case n == 0 || w.chance.IntN(15) == 0: // from the beginning now and then
		case w.chance.IntN(3) == 0:
			after = w.resume[w.chance.IntN(n)]
		default:
			after = w.resume[n-1]
		}
		record := w.open(ctx, at, after, time.Duration(2+w.chance.IntN(14))*time.Second, nil)
		if record.Failure == history.Expired {
			w.resume = nil
		}
		if record.Opened == 0 {
			Sleep(ctx, time.Duration(100+w.chance.IntN(200))*time.Millisecond)
		}
	}
}

// open is one watch, which the server ends after some seconds, or enough does when it has seen what it wants.
func (w *watcher) open(ctx context.Context, at int, after int64, limit time.Duration, enough func(history.Event) bool) history.Watch {
	query := url.Values{"watch": {"true"}, "allowWatchBookmarks": {"true"}, "timeoutSeconds": {strconv.Itoa(int(limit.Seconds()))}}
	if after != 0 {
		query.Set("resourceVersion", strconv.FormatInt(after, 10))
	} else {
		query.Set("sendInitialEvents", "true")
		query.Set("resourceVersionMatch", "NotOlderThan")
	}
	record := history.Watch{ID: w.recorder.id(), Client: w.id, Peer: w.apis[at].peer, Key: w.resource.name + "/", After: after, Invoke: w.recorder.Now()}
	if w.namespace != "" {
		record.Key += w.namespace + "/"
	}
	// A peer that stands still ends nothing.
	ctx, cancel := context.WithTimeout(ctx, limit+requestTimeout)
	defer cancel()
	body, err := w.apis[at].request(ctx, http.MethodGet, w.resource.path(w.namespace, "")+"?"+query.Encode(), nil)
	if err == nil {
		record.Opened = w.recorder.Now()
		err = w.follow(body, &record, enough)
		body.Close()
	}
	record.Closed = w.recorder.Now()
	if err != nil && !errors.Is(err, io.EOF) {
		record.Error = err.Error()
		var refused *refusal
		if errors.As(err, &refused) && refused.status.Code == http.StatusGone {
			record.Failure = history.Expired
		}
	}
	w.recorder.watch(record)
	return record
}

// follow records events until the stream ends.
func (w *watcher) follow(body io.Reader, record *history.Watch, enough func(history.Event) bool) error {
	decoder := json.NewDecoder(body)
	initial := record.After == 0
	for {
		var line struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := decoder.Decode(&line); err != nil {
			return err
		}
		event, err := w.event(line.Type, line.Object, initial)
		event.At = w.recorder.Now()
		if err != nil {
			record.Events = append(record.Events, history.Event{Kind: history.Error, At: event.At, Error: err.Error()})
			return err
		}
		if event.Kind == "" {
			continue
		}
		initial = initial && event.Kind != history.InitialEnd
		record.Events = append(record.Events, event)
		if !initial && event.Kind != history.Initial {
			if w.resume = append(w.resume, event.Object.Revision); len(w.resume) > 30 {
				w.resume = w.resume[1:]
			}
		}
		if enough != nil && enough(event) {
			return nil
		}
	}
}

// event reads one line of a watch. Its kind is empty if it is about none of the clients' objects.
func (w *watcher) event(kind string, data []byte, initial bool) (history.Event, error) {
	switch kind {
	case "BOOKMARK":
		meta, _, err := w.resource.decode(data)
		if err != nil {
			return history.Event{}, err
		}
		revision, err := parseRevision(meta.ResourceVersion)
		event := history.Event{Kind: history.Bookmark, Object: history.Object{Revision: revision}}
		if meta.Annotations[metav1.InitialEventsAnnotationKey] == "true" {
			event.Kind = history.InitialEnd
		}
		return event, err
	case "ERROR":
		refused := &refusal{}
		if err := json.Unmarshal(data, &refused.status); err != nil {
			return history.Event{}, err
		}
		refused.code = int(refused.status.Code)
		return history.Event{}, refused
	case "ADDED", "MODIFIED", "DELETED":
	default:
		return history.Event{}, fmt.Errorf("an event of the unknown type %q", kind)
	}
	object, err := w.resource.object(data, w.prefix)
	if err != nil || object == nil {
		return history.Event{}, err
	}
	event := history.Event{Kind: map[string]history.EventKind{"ADDED": history.Added, "MODIFIED": history.Modified, "DELETED": history.Deleted}[kind], Object: *object}
	if initial {
		event.Kind = history.Initial
	}
	return event, nil
}
