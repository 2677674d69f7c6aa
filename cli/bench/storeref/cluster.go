package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"shoal/consensus"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// cluster is the members: the first one, which leads every shard and takes the load, and the others' processes.
type cluster struct {
	dir       string
	shards    int
	ids       []string
	addresses map[string]string
	first     *member
	others    []*exec.Cmd
	killed    int
	// ctx is the others' life.
	ctx context.Context
	end context.CancelFunc
}

// newCluster founds a cluster and waits until every shard has a voter on every member.
func newCluster(ctx context.Context, dir string, count, shards int) (c *cluster, err error) {
	c = &cluster{dir: dir, shards: shards, end: func() {}}
	if c.ids, c.addresses, err = identities(dir, count); err != nil {
		return nil, err
	}
	if c.first, err = open(ctx, memberDir(dir, 1), shards, c.addresses); err != nil {
		return nil, err
	}
	ctx, c.end = context.WithCancel(ctx)
	c.ctx = ctx
	for n := 2; n <= count; n++ {
		command, err := spawn(ctx, dir, n, shards, c.addresses)
		if err == nil {
			err = command.Start()
		}
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.others = append(c.others, command)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := c.first.host.Found(ctx); err != nil {
		return nil, errors.Join(err, c.close())
	}
	for shard := range uint64(shards + 1) {
		if err := c.place(ctx, shard); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, errors.Join(c.settle(ctx))
}

func (c *cluster) close() error {
	c.end()
	for _, command := range c.others {
		_ = command.Wait() // it was asked to end
	}
	return c.first.close()
}

func (c *cluster) pids() []int {
	pids := []int{os.Getpid()}
	for _, command := range c.others {
		pids = append(pids, command.Process.Pid)
	}
	return pids
}

// place assigns a shard to all members.
func (c *cluster) place(ctx context.Context, shard uint64) error {
	var want []shardmap.Want
	for _, id := range c.ids {
		want = append(want, shardmap.Want{Peer: id, Voter: true})
	}
	for {
		kv, _, _, err := c.first.host.Get(ctx, consensus.MetaShard, shardmap.Key(shard), consensus.Linearizable)
		if err != nil {
			return err
		}
		a, err := shardmap.Decode(kv.Key, kv.Value)
		if err != nil {
			return err
		}
		res, err := c.first.host.Propose(ctx, consensus.MetaShard, store.Transaction{
			Conditions: []store.Condition{{Key: kv.Key, Revision: kv.Mod}},
			Ops:        []store.Op{{Key: kv.Key, Value: a.Place(want, shardmap.Members{}).Encode()}},
		})
		if err != nil || res.OK {
			return err
		}
	}
}

// settle waits until all shards have their voters and the first member leads them.
func (c *cluster) settle(ctx context.Context) error {
	return poll(ctx, func() (string, bool) {
		for _, s := range c.first.host.Status() {
			voters := 0
			for _, m := range s.Members {
				if m.Voter {
					voters++
				}
			}
			switch {
			case voters != len(c.ids) || s.Leader == "":
				return fmt.Sprintf("shard %d has %d voters", s.Shard, voters), false
			case s.Leader != c.first.id:
				_ = c.first.host.TransferLeadership(ctx, s.Shard, c.first.id) // asked for again if it is lost
				return fmt.Sprintf("shard %d is led by another", s.Shard), false
			}
		}
		return "", true
	})
}

// poll asks until check is content; what it says last is the error.
func poll(ctx context.Context, check func() (string, bool)) error {
	var why string
	err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(context.Context) (ok bool, _ error) {
		why, ok = check()
		return ok, nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", why, err)
	}
	return nil
}

// key is the n-th key and its shard.
func (c *cluster) key(n int64, spread bool) (uint64, string) {
	shard := uint64(1)
	if spread {
		shard += uint64(n) % uint64(c.shards)
	}
	return shard, fmt.Sprint("/bench/", n)
}

// Put writes durably.
func (c *cluster) Put(ctx context.Context, n int64, spread bool, value string) error {
	shard, key := c.key(n, spread)
	_, err := c.first.host.Propose(ctx, shard, store.Transaction{Ops: []store.Op{{Key: key, Value: []byte(value)}}})
	return err
}

// Get reads linearizably.
func (c *cluster) Get(ctx context.Context, n int64, spread bool) error {
	shard, key := c.key(n, spread)
	_, found, _, err := c.first.host.Get(ctx, shard, key, consensus.Linearizable)
	if err == nil && !found {
		err = fmt.Errorf("%s is not there", key)
	}
	return err
}

// Kill gives all leaderships to another member's process, kills that, and writes to every shard through the first member until it takes
// the write. Then the killed one is started again.
func (c *cluster) Kill(ctx context.Context) ([]float64, error) {
	if len(c.others) < 2 {
		return nil, errors.New("a majority has to be left: three members are needed")
	}
	at := c.killed % len(c.others)
	victim := c.ids[at+1]
	c.killed++
	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := poll(bounded, func() (string, bool) {
		for _, s := range c.first.host.Status() {
			if s.Leader != victim {
				_ = c.first.host.TransferLeadership(bounded, s.Shard, victim) // asked for again if it is lost
				return fmt.Sprintf("shard %d is not led by the member to kill", s.Shard), false
			}
		}
		return "", true
	})
	if err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(rand.N(200 * time.Millisecond)): // somewhere between two heartbeats, as deaths are
	}
	if err := c.others[at].Process.Kill(); err != nil {
		return nil, err
	}
	died := time.Now()
	outages, failed := make([]float64, c.shards+1), make([]error, c.shards+1)
	var all sync.WaitGroup
	for shard := range outages {
		all.Go(func() {
			_, failed[shard] = c.first.host.Propose(bounded, uint64(shard), store.Transaction{Ops: []store.Op{{Key: "/bench/outage", Value: []byte("v")}}})
			outages[shard] = float64(time.Since(died)) / float64(time.Millisecond)
		})
	}
	all.Wait()
	_ = c.others[at].Wait() // it was killed
	return outages, errors.Join(errors.Join(failed...), c.revive(ctx, at))
}

// revive starts a killed member again and waits until its replicas have caught up.
func (c *cluster) revive(ctx context.Context, at int) error {
	again, err := spawn(c.ctx, c.dir, at+2, c.shards, c.addresses, "--await")
	if err != nil {
		return err
	}
	out, err := again.StdoutPipe()
	if err != nil {
		return err
	}
	if err := again.Start(); err != nil {
		return err
	}
	c.others[at] = again
	up := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(out).ReadString('\n')
		up <- err
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-up:
		return err
	}
}
