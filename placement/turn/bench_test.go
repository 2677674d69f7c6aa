package turn

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"shoal/internal/cputime"
	"shoal/placement"
)

// BenchmarkRefusals measures what a refused claim costs a leader: 10,000 pods are placed on 1,000 nodes of which each second one says no,
// though nothing in the view speaks against it, and again where all say yes. The difference in CPU time by the number of refusals is the
// cost of one: its answer and its pod's next decision. "ms/refused" is how much later a pod is bound that was refused at least once, with
// turns 20 ms apart.
//
//	go test ./placement/turn -run '^$' -bench Refusals -benchtime 5x
func BenchmarkRefusals(b *testing.B) {
	var calm, refusing, late time.Duration
	var refusals, refused int
	for b.Loop() {
		spent, _, _, _ := placeAll(b, false)
		calm += spent
		spent, n, pods, delay := placeAll(b, true)
		refusing, refusals, refused, late = refusing+spent, refusals+n, refused+pods, late+delay
	}
	b.ReportMetric(float64((refusing-calm).Microseconds())/float64(refusals), "cpu-µs/refusal")
	b.ReportMetric(float64(calm.Microseconds())/float64(b.N*benchPods), "cpu-µs/pod")
	b.ReportMetric(float64(refusals)/float64(b.N), "refusals")
	b.ReportMetric(float64(late.Milliseconds())/float64(refused), "ms/refused")
	b.ReportMetric(0, "ns/op")
}

const (
	benchNodes = 1000
	benchPods  = 10_000
)

// placeAll returns the CPU time of the turns, the refusals, the pods that were refused, and the sum of their delays.
func placeAll(b *testing.B, refuse bool) (spent time.Duration, refusals, refused int, late time.Duration) {
	b.Helper()
	l := newLeader()
	for i := range benchNodes {
		l.Learn(node(fmt.Sprint("node-", i), "100"), false)
	}
	for i := range benchPods {
		l.Learn(pod(fmt.Sprint("pod-", i), "1"), false)
	}
	closed := func(name string) bool { return refuse && (name[len(name)-1]-'0')%2 == 0 }
	first := map[types.UID]time.Time{}
	at := now
	for bound := 0; bound < benchPods; at = at.Add(20 * time.Millisecond) {
		if at.Sub(now) > time.Hour {
			b.Fatalf("%d of %d pods are bound", bound, benchPods)
		}
		begun := cputime.Used()
		turn := l.Begin(at)
		for name, asked := range turn.Claims() {
			var no []types.UID
			if closed(name) {
				for _, p := range asked {
					no = append(no, p.UID)
					if _, again := first[p.UID]; !again {
						first[p.UID] = at
					}
				}
				refusals += len(no)
			}
			l.Answered(turn, placement.NodeUsage{Node: name}, no, at)
		}
		work := l.Finish(turn, at)
		spent += cputime.Used() - begun
		for name, on := range bindings(work) {
			p := pod(name, "1")
			p.Spec.NodeName = on
			l.Learn(p, false)
			bound++
			if since, was := first[p.UID]; was {
				late += at.Sub(since)
			}
		}
	}
	return spent, refusals, len(first), late
}
