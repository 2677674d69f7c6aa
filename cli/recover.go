package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"shoal/peer/admin"
)

// recoverCommand brings shards back that have lost their majority.
type recoverCommand struct {
	Shards []uint64 `arg:"" optional:"" name:"shard" help:"Which shards. None: all that are lost."`
	Yes    bool     `help:"Do it. Without it, only what is lost and what would be done is shown."`
	Output string   `short:"o" help:"text or json, of what is lost." enum:"text,json" default:"text"`
}

// Run shows the losses, and with --yes makes the shards go on from the copies on this host.
func (r *recoverCommand) Run(ctx context.Context, root *grammar, std streams) error {
	losses, err := root.local().Losses(ctx)
	if err != nil {
		return err
	}
	if len(r.Shards) > 0 {
		for _, shard := range r.Shards {
			if !slices.ContainsFunc(losses, func(l admin.Loss) bool { return l.Shard == shard }) {
				return fmt.Errorf("shard %d has a quorum: there is nothing to recover", shard)
			}
		}
		losses = slices.DeleteFunc(losses, func(l admin.Loss) bool { return !slices.Contains(r.Shards, l.Shard) })
	}
	if r.Output == "json" {
		encoder := json.NewEncoder(std.out)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(losses); err != nil || !r.Yes {
			return err
		}
	} else {
		printLosses(std.out, losses, time.Now())
	}
	here := recoverable(losses)
	switch {
	case len(losses) == 0:
		return nil
	case len(here) == 0 && r.Yes:
		return errors.New("none of these shards can be recovered on this host; nothing was changed")
	case len(here) == 0:
		return nil
	case !r.Yes:
		if r.Output == "text" {
			fmt.Fprintf(std.out, "Nothing was changed. Start the missing peers if that is possible at all: then nothing is lost.\n"+
				"If they will not come back: peer recover --yes %s\n", strings.Trim(fmt.Sprint(here), "[]"))
		}
		return nil
	}
	return root.local().Recover(ctx, here, func(line string) { fmt.Fprintln(std.err, line) })
}

// recoverable are the shards whose best copy is on this host.
func recoverable(losses []admin.Loss) []uint64 {
	var here []uint64
	for _, loss := range losses {
		if best, ok := bestHere(loss); ok && loss.Final && best.Here {
			here = append(here, loss.Shard)
		}
	}
	return here
}

// bestHere is a shard's best copy: the one on this host if it is as good as any.
func bestHere(loss admin.Loss) (admin.CopyStatus, bool) {
	if len(loss.Copies) == 0 {
		return admin.CopyStatus{}, false
	}
	best := loss.Copies[0]
	for _, c := range loss.Copies {
		if c.Here && c.Term == best.Term && c.Index == best.Index {
			best = c
		}
	}
	return best, true
}

func printLosses(out io.Writer, losses []admin.Loss, now time.Time) {
	if len(losses) == 0 {
		fmt.Fprintln(out, "Every shard has a quorum.")
		return
	}
	for _, loss := range losses {
		fmt.Fprintf(out, "shard %d has no quorum: %d of its %d voters are missing: %s\n",
			loss.Shard, len(loss.Missing), len(loss.Voters), strings.Join(loss.Missing, ", "))
		what := "all cluster-scoped objects, and which namespace is in which shard"
		if loss.Shard != 0 {
			what = dash(strings.Join(loss.Namespaces, ", "))
		}
		fmt.Fprintf(out, "  holds: %s\n", what)
		best, found := bestHere(loss)
		for _, c := range loss.Copies {
			leader := "has had no leader since its peer started"
			if !c.LeaderSeen.IsZero() {
				leader = fmt.Sprintf("last had a leader %s ago", now.Sub(c.LeaderSeen).Round(time.Second))
			}
			fmt.Fprintf(out, "  copy on %s: last change %s (revision %d), log ends at %d in term %d, %s\n",
				c.Peer, c.LastChange.UTC().Format("2006-01-02 15:04:05.000 UTC"), c.Revision, c.Index, c.Term, leader)
		}
		switch {
		case !found:
			fmt.Fprintf(out, "  No copy is within reach: start a peer that holds one, or restore a backup.\n")
		case !loss.Final:
			fmt.Fprintf(out, "  A majority of its voters answers: wait, they elect a leader.\n")
		case !best.Here:
			fmt.Fprintf(out, "  The best copy is on %s: recover it there.\n", best.Peer)
		default:
			fmt.Fprintf(out, "  It can go on from the copy here. Lost is what %s confirmed among themselves and this copy never received: writes after %s.\n",
				strings.Join(loss.Missing, " and "), best.LastChange.UTC().Format("15:04:05.000"))
		}
		fmt.Fprintln(out)
	}
}
