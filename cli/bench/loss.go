package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"shoal/cli/lab"
)

// measureLoss kills a peer with everything on it, each time in a new lab, and counts until no request to the virtual IP fails any more and
// until the lost pods run elsewhere.
func measureLoss(ctx context.Context, s *session) ([]Row, error) {
	var service, replaced []time.Duration
	for n := range s.times(3, 1) {
		if err := s.closeLab(); err != nil {
			return nil, err
		}
		l, err := s.open(ctx, 3)
		if err != nil {
			return nil, err
		}
		loss, err := s.lose(ctx, l, n+1)
		if err != nil {
			return nil, err
		}
		service, replaced = append(service, loss.Service), append(replaced, loss.Replaced)
	}
	return []Row{
		{What: "kill of a peer → VIP without an error again", Unit: "s", Measured: seconds(service), Aim: Aim{Most: 3}},
		{What: "kill of a peer → replacement pods Running", Unit: "s", Measured: seconds(replaced), Aim: Aim{Most: 10}},
	}, s.closeLab()
}

func (s *session) lose(ctx context.Context, l *lab.Lab, n int) (loss lab.Loss, err error) {
	demo := &lab.Demo{Lab: l, Out: io.Discard, WebAddress: "127.0.0.1:0"}
	defer func() { err = errors.Join(err, demo.Close()) }()
	if err := demo.Prepare(ctx); err != nil {
		return loss, err
	}
	victim, _, err := demo.Victim(ctx)
	if err != nil {
		return loss, err
	}
	err = s.step(fmt.Sprintf("kill %d: kill -9 of %s with everything on it, cable cut", n, victim.Name), func() error {
		loss, err = demo.Measure(ctx, victim)
		return err
	})
	return loss, err
}
