# Stands where Slicer's own SlicerConfig.cmake stands, and writes down what an extension would install:
# one line a file, SOURCE|PLACE below qt-scripted-modules, into installed.txt of the build folder.
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/use.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/generate_config.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/cpack.cmake)
