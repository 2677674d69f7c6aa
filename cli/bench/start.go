package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// measureStart founds clusters of one peer, each in a new lab, beside a bare start of the containerd that every peer starts too. A peer is
// ready when /readyz of its API says so.
func measureStart(ctx context.Context, s *session) ([]Row, error) {
	var founding, resuming, bare []time.Duration
	for n := range s.times(5, 1) {
		if err := s.closeLab(); err != nil {
			return nil, err
		}
		l, err := s.open(ctx, 1)
		if err != nil {
			return nil, err
		}
		founding = append(founding, l.Peers[0].Took)
		err = s.step(fmt.Sprintf("stop and start the peer again, start a containerd alone, %d", n+1), func() error {
			peer := l.Peers[0]
			if err := peer.Stop(ctx); err != nil {
				return err
			}
			begun := time.Now()
			if err := errors.Join(peer.Start(), peer.Await(ctx)); err != nil {
				return err
			}
			resuming = append(resuming, time.Since(begun))
			reference, err := s.newEngine(ctx)
			if err != nil {
				return err
			}
			bare = append(bare, reference.took)
			return reference.close()
		})
		if err != nil {
			return nil, err
		}
	}
	row := Row{Unit: "s", Against: "containerd alone", Reference: seconds(bare), Aim: Aim{Most: 2}}
	founded, resumed := row, row
	founded.What, founded.Measured = "start → ready, founding", seconds(founding)
	resumed.What, resumed.Measured = "start → ready, resuming", seconds(resuming)
	return []Row{founded, resumed}, nil
}
