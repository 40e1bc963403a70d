// Serves files with a length and in chunks, and echoes bodies; HTTP/1.1 and HTTP/2 without TLS.
package main

import (
	"flag"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
)

func main() {
	listen := flag.String("listen", "", "address")
	files := flag.String("files", "", "directory")
	flag.Parse()
	open := func(w http.ResponseWriter, r *http.Request) *os.File {
		file, err := os.Open(filepath.Join(*files, filepath.Base(r.PathValue("name"))))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return nil
		}
		return file
	}
	http.HandleFunc("GET /f/{name}", func(w http.ResponseWriter, r *http.Request) {
		if file := open(w, r); file != nil {
			defer file.Close()
			if info, err := file.Stat(); err == nil {
				w.Header().Set("Content-Length", strconv.FormatInt(info.Size(), 10))
			}
			io.Copy(w, file)
		}
	})
	http.HandleFunc("GET /c/{name}", func(w http.ResponseWriter, r *http.Request) {
		file := open(w, r)
		if file == nil {
			return
		}
		defer file.Close()
		flusher := http.NewResponseController(w)
		buffer := make([]byte, 3000)
		for {
			count, err := file.Read(buffer)
			w.Write(buffer[:count])
			flusher.Flush()
			if err != nil {
				return
			}
		}
	})
	http.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body)
	})
	server := &http.Server{Addr: *listen, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	log.Fatal(server.ListenAndServe())
}
