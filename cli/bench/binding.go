package bench

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// measureBinding binds pods end to end on simulated nodes, with more and more shards, and then rolls a Deployment over and counts the writes.
func measureBinding(ctx context.Context, s *session) (rows []Row, err error) {
	if err := s.closeLab(); err != nil {
		return nil, err
	}
	pods, sizes := s.times(30_000, 2000), "nodes=(1000|5000)/shards=(1|2|4|8)$"
	if s.cfg.Quick {
		sizes = "nodes=1000/shards=(1|4)$"
	}
	argument := "-bind.pods=" + strconv.Itoa(pods)
	var bound, rollover []goBenchmark
	err = s.step(fmt.Sprintf("bind %d pods on 1,000 and 5,000 nodes with 1 to 8 shards", pods), func() (err error) {
		bound, err = s.runBenchmarks(ctx, "^BenchmarkBind$/"+strings.ReplaceAll(sizes, "/", "$/"), argument)
		return err
	})
	if err != nil {
		return nil, err
	}
	rows = bindingRows(pods, bound)
	err = s.step("roll a Deployment of 1,000 replicas over", func() (err error) {
		rollover, err = s.runBenchmarks(ctx, "^BenchmarkRollover$")
		return err
	})
	if err != nil {
		return rows, err
	}
	return append(rows,
		Row{
			What: "transactions of a leader for a rollover of 1,000 replicas", Unit: "", Measured: rollover[0].one("transactions"),
			Against: "Kubernetes' controllers", Reference: rollover[0].one("k8s-writes"), Aim: Aim{Ratio: 1},
		},
		Row{What: "  changes of objects in them", Unit: "", Measured: rollover[0].one("changes"), Against: "Kubernetes", Reference: rollover[0].one("k8s-writes")},
		Row{What: "  bytes of those objects", Unit: "KiB", Measured: rollover[0].one("KiB")},
	), nil
}

// bindingRows puts each number of shards beside one shard.
func bindingRows(pods int, bound []goBenchmark) (rows []Row) {
	alone := map[string]goBenchmark{}
	for _, b := range bound {
		nodes, shards, _ := strings.Cut(strings.TrimPrefix(b.name, "Bind/nodes="), "/shards=")
		row := Row{
			What: fmt.Sprintf("%d pods bound end to end, %s nodes, %s shards", pods, nodes, shards), Unit: "1/s",
			Measured: b.one("pods/s"), Aim: Aim{Least: 2000},
		}
		if shards == "1" {
			alone[nodes] = b
		} else if one, known := alone[nodes]; known {
			row.Against, row.Reference = "1 shard", one.one("pods/s")
		}
		rows = append(rows, row, Row{What: "  CPU time of one", Unit: "µs", Measured: b.one("cpu-µs/pod"), Aim: Aim{Most: 1000}})
	}
	return rows
}

// measureLeader measures a leader by itself, in three sizes.
func measureLeader(ctx context.Context, s *session) (rows []Row, err error) {
	if err := s.closeLab(); err != nil {
		return nil, err
	}
	pattern := "^BenchmarkLeader$"
	if s.cfg.Quick {
		pattern += "/./pods=20000$"
	}
	var sizes []goBenchmark
	err = s.step("take over shards of 20,000 and 150,000 pods and change some", func() (err error) {
		sizes, err = s.runBenchmarks(ctx, pattern)
		return err
	})
	for _, b := range sizes {
		nodes, pods, _ := strings.Cut(strings.TrimPrefix(b.name, "Leader/nodes="), "/pods=")
		size := fmt.Sprintf("%s pods on %s nodes", pods, nodes)
		takeOver := Row{What: "stored values → a leader's view, " + size, Unit: "s", Measured: b.one("s/takeover")}
		work := Row{What: "  CPU time of it", Unit: "s", Measured: b.one("cpu-s/takeover")}
		if pods == "20000" {
			takeOver.Aim = Aim{Most: 1}
		}
		change := Row{What: "CPU time of one pod's change with its turn, " + size, Unit: "µs", Measured: b.one("cpu-µs/change")}
		if b.name != sizes[0].name {
			change.Against, change.Reference, change.Aim = "1000 nodes, 20000 pods", sizes[0].one("cpu-µs/change"), Aim{Ratio: 1.5}
		}
		rows = append(rows, takeOver, work, Row{What: "memory of a leader beside the store's, " + size, Unit: "MiB", Measured: b.one("MiB")}, change)
	}
	return rows, err
}
