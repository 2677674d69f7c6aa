// Command probe is the program in the tests' images.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		args = []string{"sleep"}
	}
	switch args[0] {
	case "sleep": // until SIGTERM, then exit 0; with a number of seconds: exit after them
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		if len(args) > 1 {
			seconds, _ := strconv.ParseFloat(args[1], 64)
			select {
			case <-time.After(time.Duration(seconds * float64(time.Second))):
			case <-signals:
			}
			return
		}
		fmt.Println("sleeping")
		<-signals
	case "stubborn": // ignores SIGTERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("stubborn")
		for {
			time.Sleep(time.Hour)
		}
	case "exit":
		code, _ := strconv.Atoi(args[1])
		fmt.Println("to stdout")
		fmt.Fprintln(os.Stderr, "to stderr")
		os.Exit(code)
	case "count": // a line every 10 ms, n lines
		n, _ := strconv.Atoi(args[1])
		for i := range n {
			fmt.Println("line", i)
			time.Sleep(10 * time.Millisecond)
		}
	case "eat": // n MiB of memory
		n, _ := strconv.Atoi(args[1])
		var kept [][]byte
		for range n {
			block := make([]byte, 1<<20)
			for i := range block {
				block[i] = 1
			}
			kept = append(kept, block)
		}
		fmt.Println("ate", len(kept))
		time.Sleep(time.Minute)
	case "echo": // lines of stdin in capitals
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			fmt.Println(strings.ToUpper(lines.Text()))
		}
		fmt.Println("end of input")
	case "serve":
		http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello from "+hostname()) })
		http.ListenAndServe(args[1], nil)
	case "show": // the process as it sees itself
		show(args[1:])
	case "cat":
		for _, path := range args[1:] {
			data, err := os.ReadFile(path)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Stdout.Write(data)
		}
	case "write":
		if err := os.WriteFile(args[1], []byte("x"), 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func hostname() string {
	name, _ := os.Hostname()
	return name
}

func show(names []string) {
	for _, name := range names {
		switch name {
		case "env":
			for _, entry := range os.Environ() {
				fmt.Println("env", entry)
			}
		case "ids":
			groups, _ := os.Getgroups()
			fmt.Println("ids", os.Getuid(), os.Getgid(), groups)
		case "hostname":
			fmt.Println("hostname", hostname())
		case "cwd":
			cwd, _ := os.Getwd()
			fmt.Println("cwd", cwd)
		case "pid":
			fmt.Println("pid", os.Getpid())
		case "status": // capabilities, seccomp, no_new_privs
			data, _ := os.ReadFile("/proc/self/status")
			for _, line := range strings.Split(string(data), "\n") {
				if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "Seccomp:") || strings.HasPrefix(line, "NoNewPrivs") {
					fmt.Println(line)
				}
			}
		case "tty":
			info, _ := os.Stdout.Stat()
			fmt.Println("tty", info.Mode()&os.ModeCharDevice != 0)
		}
	}
}
