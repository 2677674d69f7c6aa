package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestOperatorsEndAlike runs a client-go operator undisturbed and under each of the patterns that break operators elsewhere: each time it
// must come to the same end. One that acts on events instead of on what is there must not.
func TestOperatorsEndAlike(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := Open(dir, 1, peerLog)
		defer f.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		if err := f.Grow(ctx, 3); err != nil {
			t.Error(err)
			return
		}
		user, err := f.Client(f.Machines()[0])
		if err != nil {
			t.Error(err)
			return
		}
		defer closeIdle(user)
		play := func(name string, pattern Disturbance, edges bool) []string {
			o := &operated{fleet: f, user: user, namespace: name, pattern: pattern, edges: edges}
			end, err := o.play(ctx, time.Minute)
			if err != nil {
				t.Errorf("%s: %v", pattern, err)
			}
			if pattern == Crashed && o.crashes.Load() < 3 {
				t.Errorf("it crashed only %d times", o.crashes.Load())
			}
			return end
		}
		undisturbed := play("operator", Undisturbed, false)
		if members := slices.DeleteFunc(slices.Clone(undisturbed), func(s string) bool { return !strings.Contains(s, "-") }); len(members) != 4 {
			t.Errorf("two members are four objects: %v", undisturbed)
		}
		for i, pattern := range []Disturbance{Crashed, Blinded, Stale} {
			if why := differ(undisturbed, play(fmt.Sprint("operator-", i), pattern, false)); why != "" {
				t.Errorf("%s: %s", pattern, why)
			}
		}
		if why := differ(undisturbed, play("careless", Undisturbed, true)); why == "" {
			t.Error("an operator that misses what is gone ended like one that does not")
		}
	})
}
