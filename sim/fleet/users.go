package fleet

import (
	"context"
	"fmt"
	"sync"
	"time"

	"shoal/sim/clients"
	"shoal/sim/history"
)

// Users are the clients of the API during a run.
type Users struct {
	Writers int // default 3
	Readers int // at each consistency; default 2
	Wide    int // watchers of everything, of each resource, besides one of one namespace; default 2
	// Namespaces is in how many they work (default 4), Objects over how many of each resource in each (default 3).
	Namespaces, Objects int
	// Pause is the least time from one operation of a client to its next; default a second.
	Pause time.Duration
	// MinPerMinute is how many operations a minute of virtual time all must do, else the run is invalid. Default 300.
	MinPerMinute float64
}

func (u Users) withDefaults() Users {
	for _, field := range []struct {
		value     *int
		otherwise int
	}{{&u.Writers, 3}, {&u.Readers, 2}, {&u.Wide, 2}, {&u.Namespaces, 4}, {&u.Objects, 3}} {
		if *field.value == 0 {
			*field.value = field.otherwise
		}
	}
	if u.Pause == 0 {
		u.Pause = time.Second
	}
	if u.MinPerMinute == 0 {
		u.MinPerMinute = 300
	}
	return u
}

// habits are what each of the clients does.
func (u Users) habits() []clients.Habit {
	var habits []clients.Habit
	for range u.Writers {
		habits = append(habits, clients.Writer)
	}
	for range u.Readers {
		for _, consistency := range []history.Consistency{history.Linearizable, history.Any, history.NotOlder, history.Exact} {
			habits = append(habits, clients.Reader(consistency))
		}
	}
	return habits
}

// users are those of one run.
type users struct {
	crowd    *clients.Crowd
	reader   *clients.Client
	base     int64
	began    time.Duration
	workers  sync.WaitGroup
	watchers sync.WaitGroup
	stopWork context.CancelFunc
	stop     context.CancelFunc
}

// openUsers starts all clients. They use every machine that there is now.
func (r *run) openUsers(ctx context.Context) (*users, error) {
	plan := r.plan.Users.withDefaults()
	u := &users{began: time.Since(r.begun), crowd: &clients.Crowd{
		Recorder: clients.NewRecorder(history.Meta{Seed: int64(r.plan.Seed), Note: fmt.Sprintf("sim/fleet with %d peers", r.plan.Peers)}),
		Seed:     r.plan.Seed, Connect: r.connect, Prefix: "users-", Objects: plan.Objects, Pause: plan.Pause,
	}}
	u.crowd.Name(plan.Namespaces)
	apis, err := r.connect(0)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, a := range apis {
			a.Close()
		}
	}()
	if err := u.crowd.MakeNamespaces(ctx, apis); err != nil {
		return nil, err
	}
	if u.reader, err = u.crowd.Client(0, clients.Everything); err != nil {
		return nil, err
	}
	if u.base, err = u.crowd.Base(ctx, u.reader); err != nil {
		return nil, err
	}
	working, stopWork := context.WithCancel(ctx)
	watching, stop := context.WithCancel(ctx)
	u.stopWork, u.stop = stopWork, stop
	if err := u.crowd.Watch(watching, &u.watchers, plan.Wide); err != nil {
		u.close()
		return nil, err
	}
	time.Sleep(time.Second) // the watchers shall be there before the first write
	if err := u.crowd.Work(working, &u.workers, plan.habits()); err != nil {
		u.close()
		return nil, err
	}
	return u, nil
}

// connect gives a client connections to all machines, every other one with HTTP/2.
func (r *run) connect(client int) ([]*clients.API, error) {
	var apis []*clients.API
	for _, m := range r.fleet.Machines() {
		config, err := r.fleet.Config(m)
		if err != nil {
			return nil, err
		}
		api, err := clients.NewAPI(m.Name, config, client%2 == 1)
		if err != nil {
			return nil, err
		}
		apis = append(apis, api)
	}
	return apis, nil
}

// finish ends the work, reads everything through every peer and closes.
func (u *users) finish(ctx context.Context, machines []*Machine) {
	u.stopWork()
	u.workers.Wait()
	reader := u.reader.Only(namesIn(machines))
	u.crowd.Audit(ctx, reader, u.base, u.crowd.Finish(ctx, reader))
	u.close()
}

func namesIn(machines []*Machine) []string {
	var names []string
	for _, m := range machines {
		names = append(names, m.Name)
	}
	return names
}

// close ends all clients.
func (u *users) close() {
	u.stopWork()
	u.stop()
	u.workers.Wait()
	u.watchers.Wait()
	u.reader.Close()
}

// answer says which machine does not answer the users for everything; nil if all do.
func (u *users) answer(ctx context.Context, machines []*Machine) error {
	if u == nil {
		return nil // they have not come yet
	}
	return u.crowd.Answers(ctx, u.reader.Only(namesIn(machines)))
}
