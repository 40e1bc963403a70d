// Asks for files, sends bodies to be echoed, and compares every byte; prints what came of it as JSON.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

type counts struct {
	Requests   int      `json:"requests"`
	Bytes      int      `json:"bytes"`
	Mismatches int      `json:"mismatches"`
	Errors     int      `json:"errors"`
	Stalls     int      `json:"stalls"`
	Notes      []string `json:"notes"`
}

func (c *counts) note(format string, arguments ...any) {
	if len(c.Notes) < 10 {
		c.Notes = append(c.Notes, fmt.Sprintf(format, arguments...))
	}
}

func main() {
	to := flag.String("to", "", "URL of the server")
	files := flag.String("files", "", "directory")
	seconds := flag.Float64("seconds", 5, "duration")
	workers := flag.Int("workers", 4, "workers")
	seed := flag.Int64("seed", 1, "seed")
	http2 := flag.Bool("http2", false, "HTTP/2 without TLS")
	flag.Parse()
	var contents [][]byte
	var names []string
	entries, err := os.ReadDir(*files)
	if err != nil {
		panic(err)
	}
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(*files, entry.Name()))
		if err != nil {
			panic(err)
		}
		names, contents = append(names, entry.Name()), append(contents, content)
	}
	transport := &http.Transport{Protocols: new(http.Protocols), MaxIdleConnsPerHost: *workers}
	if *http2 {
		transport.Protocols.SetUnencryptedHTTP2(true)
	} else {
		transport.Protocols.SetHTTP1(true)
	}
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	end := time.Now().Add(time.Duration(*seconds * float64(time.Second)))
	sum := counts{Notes: []string{}}
	var lock sync.Mutex
	var group sync.WaitGroup
	for worker := range *workers {
		group.Add(1)
		go func() {
			defer group.Done()
			random := rand.New(rand.NewSource(*seed + int64(worker)))
			for time.Now().Before(end) {
				at := random.Intn(len(names))
				kind := random.Intn(4)
				began := time.Now()
				body, err := ask(client, *to, kind, names[at], contents[at])
				lock.Lock()
				if err != nil {
					if time.Since(began) >= 30*time.Second {
						sum.Stalls++
					} else {
						sum.Errors++
					}
					sum.note("%s, kind %d: %v", names[at], kind, err)
				} else {
					sum.Requests++
					sum.Bytes += len(body)
					if !bytes.Equal(body, contents[at]) {
						sum.Mismatches++
						sum.note("%s, kind %d: %d bytes differ from the file's %d", names[at], kind, len(body), len(contents[at]))
					}
				}
				lock.Unlock()
			}
		}()
	}
	group.Wait()
	json.NewEncoder(os.Stdout).Encode(sum)
}

func ask(client *http.Client, to string, kind int, name string, content []byte) ([]byte, error) {
	var response *http.Response
	var err error
	switch kind {
	case 0:
		response, err = client.Get(to + "/f/" + name)
	case 1:
		response, err = client.Get(to + "/c/" + name)
	case 2:
		response, err = client.Post(to+"/echo", "application/octet-stream", bytes.NewReader(content))
	default:
		// A reader whose length is not known is sent in chunks.
		response, err = client.Post(to+"/echo", "application/octet-stream", io.MultiReader(bytes.NewReader(content)))
	}
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %.80q", response.StatusCode, body)
	}
	return body, err
}
