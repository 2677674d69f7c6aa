package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"
)

// Case is one thing that a reference program is told to do, a line of JSON on its standard input. It answers with a line of JSON.
type Case struct {
	// Op is what is done again and again: "put" or "get"; or once: "kill", see Killer.
	Op string `json:"op"`
	// Bytes is the size of a value, InFlight how many requests are under way.
	Bytes    int `json:"bytes,omitempty"`
	InFlight int `json:"inFlight,omitempty"`
	// Spread takes keys of all shards in turn instead of one shard's.
	Spread bool `json:"spread,omitempty"`
	// For is how long.
	For time.Duration `json:"for,omitempty"`
}

// Ready is the first line that a reference program prints.
type Ready struct {
	// PIDs are the members' processes.
	PIDs []int `json:"pids"`
}

// Answer is what a program prints for a case.
type Answer struct {
	Result Result `json:"result"`
	// Outages are the milliseconds without a write, one for each shard that was led by the member that was killed.
	Outages []float64 `json:"outages,omitempty"`
	Error   string    `json:"error,omitempty"`
}

// Target is what a load is put on. spread says whether the n-th request goes to the n-th shard, or all to one.
type Target interface {
	Put(ctx context.Context, n int64, spread bool, value string) error
	Get(ctx context.Context, n int64, spread bool) error
}

// Killer is a Target that can lose a member: the one that leads, with SIGKILL. It returns how long each of its shards took no write.
type Killer interface {
	Kill(ctx context.Context) (outages []float64, err error)
}

// keys is how many keys a load writes in turn.
const keys = 10_000

// Serve does what the lines of in say, until they end.
func Serve(ctx context.Context, in io.Reader, out io.Writer, target Target) error {
	answers := json.NewEncoder(out)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var c Case
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return fmt.Errorf("case %q: %w", lines.Text(), err)
		}
		answer, err := c.run(ctx, target)
		if err != nil {
			answer.Error = err.Error()
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (c Case) run(ctx context.Context, target Target) (answer Answer, err error) {
	value := strings.Repeat("v", c.Bytes)
	var made atomic.Int64
	switch c.Op {
	case "put":
		answer.Result, err = Run(ctx, c.InFlight, c.For, func(ctx context.Context, _ int) error {
			return target.Put(ctx, made.Add(1)%keys, c.Spread, value)
		})
	case "get":
		if err = target.Put(ctx, 0, c.Spread, value); err != nil {
			return answer, err
		}
		answer.Result, err = Run(ctx, c.InFlight, c.For, func(ctx context.Context, _ int) error { return target.Get(ctx, 0, c.Spread) })
	case "kill":
		killer, ok := target.(Killer)
		if !ok {
			return answer, errors.New("this target has nothing to kill")
		}
		answer.Outages, err = killer.Kill(ctx)
	default:
		err = fmt.Errorf("there is no operation %q", c.Op)
	}
	return answer, err
}
